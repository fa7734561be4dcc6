// Several drafters, asked in order.
#include <algorithm>

#include "base/error.h"
#include "decode/drafter.h"

namespace pronghorn {
namespace {

class StackedDrafter final : public Drafter {
 public:
  explicit StackedDrafter(std::vector<std::unique_ptr<Drafter>> drafters)
      : drafters_(std::move(drafters)) {
    require(!drafters_.empty(), "draft", "a stack of no drafters");
    for (const auto& drafter : drafters_) {
      first_kinds_.push_back(kinds_);
      if (costly_kind_ < 0 && drafter->costly_kind() >= 0) {
        costly_kind_ = kinds_ + drafter->costly_kind();
      }
      kinds_ += drafter->kinds();
    }
  }

  std::string name() const override {
    std::vector<std::string> names;
    for (const auto& drafter : drafters_) names.push_back(drafter->name());
    return fmt::format("{}", fmt::join(names, ","));
  }
  int kinds() const override { return kinds_; }
  int costly_kind() const override { return costly_kind_; }
  bool wants_hidden() const override {
    return std::any_of(drafters_.begin(), drafters_.end(),
                       [](const auto& drafter) { return drafter->wants_hidden(); });
  }

  int64_t longest_text() const override {
    int64_t longest = 0;
    for (const auto& drafter : drafters_) longest = std::max(longest, drafter->longest_text());
    return longest;
  }

  void start(size_t count) override {
    for (const auto& drafter : drafters_) drafter->start(count);
  }
  void forget(size_t sequence) override {
    for (const auto& drafter : drafters_) drafter->forget(sequence);
  }
  void append(size_t sequence, std::span<const int32_t> tokens) override {
    for (const auto& drafter : drafters_) drafter->append(sequence, tokens);
  }
  void begin(size_t sequence, std::span<const int32_t> known) override {
    for (const auto& drafter : drafters_) drafter->begin(sequence, known);
  }
  void observe(size_t sequence, const Tensor& hidden) override {
    for (const auto& drafter : drafters_) {
      if (drafter->wants_hidden()) drafter->observe(sequence, hidden);
    }
  }

  void draft(const Context& context, std::span<DraftRequest> requests) override {
    std::vector<DraftRequest> asked(requests.begin(), requests.end());
    for (DraftRequest& request : requests) request.draft = {};
    for (size_t d = 0; d < drafters_.size() && !asked.empty(); ++d) {
      const int64_t longest = drafters_[d]->longest_text();
      std::vector<DraftRequest> fit;
      std::ranges::copy_if(asked, std::back_inserter(fit), [&](const DraftRequest& one) {
        return one.position + kMaxDraft <= longest;
      });
      drafters_[d]->draft(context, fit);
      for (const DraftRequest& one : fit) {
        if (one.draft.empty()) continue;
        Draft& answer = request_of(requests, one.sequence).draft;
        answer = one.draft;
        answer.kind += first_kinds_[d];
      }
      std::erase_if(asked, [&](const DraftRequest& one) {
        return !request_of(requests, one.sequence).draft.empty();
      });
    }
  }

 private:
  static DraftRequest& request_of(std::span<DraftRequest> requests, size_t sequence) {
    return *std::find_if(requests.begin(), requests.end(),
                         [&](const DraftRequest& request) { return request.sequence == sequence; });
  }

  std::vector<std::unique_ptr<Drafter>> drafters_;
  std::vector<int> first_kinds_;
  int kinds_ = 0, costly_kind_ = -1;
};

}  // namespace

std::unique_ptr<Drafter> make_stacked_drafter(std::vector<std::unique_ptr<Drafter>> drafters) {
  return std::make_unique<StackedDrafter>(std::move(drafters));
}

}  // namespace pronghorn
