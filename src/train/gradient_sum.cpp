#include "train/gradient_sum.h"

#include <algorithm>

namespace pronghorn {
namespace {

// Parameters are exchanged together until they have that many numbers.
constexpr int64_t kBucket = 1 << 22;

// Calls body(first, last) on consecutive parameters of about a bucket each.
template <typename Body>
void for_each_bucket(const Ownership& ownership, size_t parameters, Body&& body) {
  size_t first = 0;
  int64_t size = 0;
  for (size_t i = 0; i < parameters; ++i) {
    size += ownership.size(i);
    if (size < kBucket && i + 1 < parameters) continue;
    body(first, i + 1);
    first = i + 1;
    size = 0;
  }
}

// A message to each rank or from each, filled part by part.
class Messages {
 public:
  explicit Messages(Ranks& ranks)
      : ranks_(ranks), all_(static_cast<size_t>(ranks.count())), read_(all_.size(), 0) {}

  void append(int64_t rank, std::span<const float> numbers) {
    std::vector<float>& message = all_[static_cast<size_t>(rank)];
    message.insert(message.end(), numbers.begin(), numbers.end());
  }
  void expect(int64_t rank, int64_t numbers) {
    std::vector<float>& message = all_[static_cast<size_t>(rank)];
    message.resize(message.size() + static_cast<size_t>(numbers));
  }
  std::span<const float> next(int64_t rank, int64_t numbers) {
    size_t& at = read_[static_cast<size_t>(rank)];
    at += static_cast<size_t>(numbers);
    return std::span(all_[static_cast<size_t>(rank)])
        .subspan(at - static_cast<size_t>(numbers), static_cast<size_t>(numbers));
  }

  // Sends these, one to each rank, and fills `from` with theirs. what: for bytes_sent_as().
  void exchange_into(Messages& from, const char* what) {
    std::vector<std::span<const std::byte>> to;
    std::vector<std::span<std::byte>> answers;
    for (const std::vector<float>& message : all_) to.push_back(std::as_bytes(std::span(message)));
    for (std::vector<float>& message : from.all_) {
      answers.push_back(std::as_writable_bytes(std::span(message)));
    }
    ranks_.exchange_as(what, to, answers);
  }

 private:
  Ranks& ranks_;
  std::vector<std::vector<float>> all_;
  std::vector<size_t> read_;
};

std::span<float> part_of(const std::span<float> whole, Part part) {
  return whole.subspan(static_cast<size_t>(part.begin), static_cast<size_t>(part.count));
}

}  // namespace

Ownership::Ownership(std::span<const Parameter> parameters, int64_t ranks) : ranks_(ranks) {
  for (const Parameter& parameter : parameters) sizes_.push_back(parameter.value.size());
}

Part Ownership::part(size_t parameter, int64_t rank) const {
  const int64_t size = sizes_[parameter], blocks = (size + kBlock - 1) / kBlock;
  // Small parameters are dealt out one by one.
  const int64_t place = (rank + static_cast<int64_t>(parameter)) % ranks_;
  const int64_t begin = std::min(size, blocks * place / ranks_ * kBlock);
  const int64_t end = std::min(size, blocks * (place + 1) / ranks_ * kBlock);
  return {begin, end - begin};
}

GradientSum::GradientSum(const Model& model, const Ownership& ownership, Ranks& ranks)
    : model_(model), ownership_(ownership), ranks_(ranks), has_(model.trained().size(), false) {}

void GradientSum::add_round() {
  const std::vector<Parameter>& parameters = model_.trained();
  if (!summed_) sums_.resize(parameters.size());
  summed_ = true;
  const int64_t count = ranks_.count();
  // Experts that no row of a group went to have no gradient in it.
  std::vector<unsigned char> here;
  for (const Parameter& parameter : parameters) here.push_back(parameter.value.has_grad());
  const std::vector<unsigned char> there = gather<unsigned char>(ranks_, here);
  const auto gives = [&](int64_t rank, size_t i) {
    return there[static_cast<size_t>(rank) * parameters.size() + i] != 0;
  };
  for_each_bucket(ownership_, parameters.size(), [&](size_t first, size_t last) {
    Messages to(ranks_), from(ranks_);
    for (size_t i = first; i < last; ++i) {
      const Tensor& value = parameters[i].value;
      const int64_t own = ownership_.part(i, ranks_.rank()).count;
      for (int64_t r = 0; r < count; ++r) {
        if (here[i] != 0) to.append(r, part_of(value.grad().values(), ownership_.part(i, r)));
        if (gives(r, i)) from.expect(r, own);
      }
      value.clear_grad();
    }
    to.exchange_into(from, "gradients");
    for (size_t i = first; i < last; ++i) {
      const int64_t own = ownership_.part(i, ranks_.rank()).count;
      for (int64_t r = 0; r < count; ++r) {
        if (!gives(r, i)) continue;
        const std::span<const float> gradient = from.next(r, own);
        if (!has_[i]) {
          sums_[i].assign(gradient.begin(), gradient.end());
          has_[i] = true;
          continue;
        }
        for (size_t k = 0; k < gradient.size(); ++k) sums_[i][k] += gradient[k];
      }
    }
  });
}

bool GradientSum::has(size_t parameter) const {
  return summed_ ? has_[parameter] : model_.trained()[parameter].value.has_grad();
}

std::span<const float> GradientSum::part(size_t parameter) const {
  if (!has(parameter)) return {};
  if (summed_) return sums_[parameter];
  return part_of(model_.trained()[parameter].value.grad().values(),
                 ownership_.part(parameter, ranks_.rank()));
}

double GradientSum::sum_of_squares(const std::vector<bool>& counts) const {
  // Each rank adds up the blocks that it owns; all add the blocks' sums in one order.
  const auto blocks_of = [](int64_t numbers) {
    return (numbers + Ownership::kBlock - 1) / Ownership::kBlock;
  };
  int64_t most = 0;
  std::vector<int64_t> used(static_cast<size_t>(ranks_.count()), 0);
  for (int64_t r = 0; r < ranks_.count(); ++r) {
    int64_t blocks = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] && has(i)) blocks += blocks_of(ownership_.part(i, r).count);
    }
    most = std::max(most, blocks);
  }
  std::vector<std::span<const float>> blocks;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (!counts[i] || !has(i)) continue;
    append_blocks(part(i), blocks);
  }
  std::vector<double> mine = sums_of_squares(blocks);
  mine.resize(static_cast<size_t>(most), 0);
  const std::vector<double> all = gather<double>(ranks_, mine);
  double total = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (!counts[i] || !has(i)) continue;
    // In the order of the numbers: ranks follow one another from the one that owns the beginning.
    double sum = 0;
    for (int64_t place = 0; place < ranks_.count(); ++place) {
      const int64_t shift = static_cast<int64_t>(i) % ranks_.count();
      const int64_t r = (place - shift + ranks_.count()) % ranks_.count();
      int64_t& at = used[static_cast<size_t>(r)];
      for (int64_t b = blocks_of(ownership_.part(i, r).count); b > 0; --b) {
        sum += all[static_cast<size_t>(r * most + at++)];
      }
    }
    total += sum;
  }
  return total;
}

void GradientSum::share_parameters() const {
  const std::vector<Parameter>& parameters = model_.trained();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (has(i)) parameters[i].value.bump_version();
  }
  if (ranks_.count() == 1) return;
  for_each_bucket(ownership_, parameters.size(), [&](size_t first, size_t last) {
    Messages to(ranks_), from(ranks_);
    for (size_t i = first; i < last; ++i) {
      if (!has(i)) continue;
      const Part own = ownership_.part(i, ranks_.rank());
      for (int64_t r = 0; r < ranks_.count(); ++r) {
        to.append(r, part_of(parameters[i].value.values(), own));
        from.expect(r, ownership_.part(i, r).count);
      }
    }
    to.exchange_into(from, "parameters");
    for (size_t i = first; i < last; ++i) {
      if (!has(i)) continue;
      for (int64_t r = 0; r < ranks_.count(); ++r) {
        const Part part = ownership_.part(i, r);
        std::ranges::copy(from.next(r, part.count),
                          part_of(parameters[i].value.values(), part).begin());
      }
    }
  });
}

}  // namespace pronghorn
