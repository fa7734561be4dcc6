#include "train/train_step.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/trained_context.h"
#include "tensor/sequence_shards.h"
#include "train/masked_text.h"
#include "train/optimizer.h"

namespace pronghorn {

int64_t sequences_per_step(const TrainConfig& config, const DataSource& source) {
  return std::max<int64_t>(1, config.batch_tokens / source.length());
}

int64_t ranks_together(const TrainConfig& config, int64_t ranks) {
  if (config.sequence_parallel == SequenceParallel::none) return 1;
  const int64_t together =
      config.sequence_parallel_ranks > 0 ? config.sequence_parallel_ranks : ranks;
  if (ranks % together != 0) {
    throw Error("sequence_parallel_ranks", fmt::format("{} on {} ranks", together, ranks),
                "choose a number that divides that of the processes");
  }
  return together;
}

namespace {

// What this rank has of values of all rows.
std::vector<int32_t> own_part(const SequenceShards* shards, std::span<const int32_t> values) {
  return shards != nullptr ? shards->part_of(values)
                           : std::vector<int32_t>(values.begin(), values.end());
}

// The losses of what speculation guesses with: an early exit and the heads for multi-token
// prediction. Both learn along with the model and do not count in its loss.
class DraftLosses {
 public:
  DraftLosses(const Model& model, const TrainConfig& config) : model_(model), config_(config) {
    if (config.early_exit > 0) model.check_exit(config.early_exit, "early_exit");
  }

  // Takes what the early exit sees of a forward.
  void watch(ForwardObserver& observer) {
    if (config_.early_exit == 0) return;
    observer.on_block = [this](const BlockEnd& end) {
      if (end.layers == config_.early_exit) early_hidden_ = end.hidden();
      return true;
    };
  }

  // After the forward of `batch` (segments of `length`), which gave `hidden` to `observer`. shards:
  // of the batch, if it lies on several ranks; `hidden` is of this one's rows then.
  void record(const Context& context, const ForwardObserver& observer, const Tensor& hidden,
              const Batch& batch, std::span<const int32_t> targets, int64_t length,
              double gradient_scale, const SequenceShards* shards) {
    const std::vector<int32_t>& tokens = batch.tokens;
    if (config_.early_exit > 0) {
      model_.cross_entropy(context, early_hidden_, own_part(shards, targets),
                           gradient_scale * config_.early_exit_loss, 0);
    }
    const int64_t heads = config_.mtp_loss > 0 ? model_.mtp_depth() : 0;
    batches_.reserve(static_cast<size_t>(heads));  // the tape refers to them
    Tensor last = hidden;
    for (int64_t k = 0; k < heads; ++k) {
      // Head k sees of token t the one k + 1 after it and predicts the next but that: targets move
      // along, and the last k + 1 of a segment have none.
      std::vector<int32_t> seen(tokens.size(), 0), wanted(tokens.size(), -1);
      for (size_t row = 0; row < tokens.size(); ++row) {
        const auto place = static_cast<int64_t>(row) % length;
        if (place + k + 1 >= length) continue;
        seen[row] = tokens[row + static_cast<size_t>(k) + 1];
        wanted[row] = targets[row + static_cast<size_t>(k) + 1];
      }
      if (shards != nullptr) {
        batches_.push_back(shards->local_batch(seen));
      } else {
        batches_.push_back(fresh_segments(seen, length));
        batches_.back().positions = batch.positions;
      }
      last = model_.mtp_forward(context, k, last, batches_.back(), observer);
      model_.cross_entropy(context, last, own_part(shards, wanted),
                           gradient_scale * config_.mtp_loss / static_cast<double>(heads), 0);
    }
  }

 private:
  const Model& model_;
  const TrainConfig& config_;
  Tensor early_hidden_;
  std::vector<Batch> batches_;
};

// The examples of a step.
struct Examples {
  int64_t length = 0, count = 0;
  uint64_t first = 0;  // the number of the first
  std::vector<int32_t> tokens, targets;

  std::span<const int32_t> tokens_of(int64_t begin, int64_t rows) const {
    return std::span(tokens).subspan(static_cast<size_t>(begin * length),
                                     static_cast<size_t>(rows));
  }
  std::span<const int32_t> targets_of(int64_t begin, int64_t rows) const {
    return std::span(targets).subspan(static_cast<size_t>(begin * length),
                                      static_cast<size_t>(rows));
  }
};

Examples read_examples(DataSource& source, uint64_t first, int64_t count) {
  Examples examples;
  examples.length = source.length();
  examples.count = count;
  examples.first = first;
  examples.tokens.resize(static_cast<size_t>(count * examples.length));
  examples.targets.resize(examples.tokens.size());
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i * examples.length);
    const auto size = static_cast<size_t>(examples.length);
    source.fill(first + static_cast<uint64_t>(i), std::span(examples.tokens).subspan(at, size),
                std::span(examples.targets).subspan(at, size));
  }
  return examples;
}

// Gives the rows of examples first ... of a step their positions.
void skip_positions(const TrainConfig& config, uint64_t seed, const Examples& examples,
                    int64_t first, Batch& batch) {
  require(batch.rows() == std::ssize(batch.segments) * examples.length, "position",
          "positions are skipped in examples that are no texts");
  for (size_t at = 0; at < batch.segments.size(); ++at) {
    const uint64_t index = examples.first + static_cast<uint64_t>(first) + at;
    std::ranges::copy(skipped_positions(config.positions, seed, index, examples.length),
                      batch.positions.begin() + batch.segments[at].first_row);
  }
}

// The loss of a diffusion model on examples first ... first + count - 1 of a step.
CrossEntropy masked_loss(const Model& model, const Context& context, const Examples& examples,
                         int64_t first, int64_t count, uint64_t seed, double gradient_scale,
                         double z_loss, const ForwardObserver& observer) {
  const DiffusionConfig& diffusion = *model.config().diffusion;
  MaskedText text(diffusion);
  for (int64_t i = first; i < first + count; ++i) {
    text.add(examples.tokens_of(i, examples.length),
             training_mask(diffusion, seed, examples.first + static_cast<uint64_t>(i),
                           examples.count, examples.length));
  }
  return text.loss(model, context, gradient_scale, z_loss, observer);
}

// What the forwards of a group report.
struct Report {
  double loss = 0;
  int64_t correct = 0;
  std::map<std::string, double> layer_losses;
  ExpertLoads loads;

  Report& operator+=(const Report& other) {
    loss += other.loss;
    correct += other.correct;
    for (const auto& [name, value] : other.layer_losses) layer_losses[name] += value;
    loads += other.loads;
    return *this;
  }
};

// Its numbers, to be sent to other ranks, and back. Reports of one model have the same names.
std::vector<double> numbers_of(const Report& report) {
  std::vector<double> numbers = {report.loss, static_cast<double>(report.correct)};
  for (const auto& [name, value] : report.layer_losses) numbers.push_back(value);
  for (const auto& [layer, rows] : report.loads.rows()) {
    for (const int64_t count : rows) numbers.push_back(static_cast<double>(count));
  }
  return numbers;
}

Report report_from(std::span<const double> numbers, const Report& like) {
  Report report;
  size_t at = 0;
  report.loss = numbers[at++];
  report.correct = static_cast<int64_t>(numbers[at++]);
  for (const auto& [name, value] : like.layer_losses) report.layer_losses[name] = numbers[at++];
  for (const auto& [layer, rows] : like.loads.rows()) {
    ExpertLoad load{layer, {}};
    for (size_t e = 0; e < rows.size(); ++e) {
      load.rows.push_back(static_cast<int64_t>(numbers[at++]));
    }
    report.loads.add(load);
  }
  return report;
}

// The sum of all groups' reports in the order of the groups, and of ranks within a group that
// several make. mine: of the groups that this rank has made, or of its part of them.
Report sum_of_reports(Ranks& ranks, const std::vector<Report>& mine) {
  Report total;
  for (const Report& report : mine) {
    const std::vector<double> numbers = numbers_of(report);
    const std::vector<double> all = gather<double>(ranks, numbers);
    for (size_t at = 0; at < all.size(); at += numbers.size()) {
      total += report_from(std::span(all).subspan(at, numbers.size()), report);
    }
  }
  return total;
}

// The forwards and backwards of a step.
class StepPasses {
 public:
  // ranks: that make groups together with this one.
  StepPasses(const Model& model, const TrainConfig& config, const DataSource& source,
             const Examples& examples, Ranks& ranks, int64_t step, uint64_t seed)
      : model_(model),
        config_(config),
        source_(source),
        examples_(examples),
        ranks_(ranks),
        step_(step),
        seed_(seed) {
    const int64_t asked =
        diffusion() ? std::ssize(examples.tokens)
                    : std::ranges::count_if(examples.targets, [](int32_t t) { return t >= 0; });
    gradient_scale_ = 1 / static_cast<double>(std::max<int64_t>(1, asked));
  }

  double gradient_scale() const { return gradient_scale_; }

  // Whether the ranks work on the same examples, each on its rows.
  bool shares_sequences() const {
    return config_.sequence_parallel != SequenceParallel::none && ranks_.count() > 1;
  }

  // Leaves the gradients of examples [begin, end), made by micro-batches; of shared sequences what
  // this rank's rows give to them.
  Report run(int64_t begin, int64_t end) {
    const int64_t wanted =
        config_.micro_batch_tokens > 0 ? config_.micro_batch_tokens : config_.batch_tokens;
    const int64_t micro = std::clamp<int64_t>(wanted / examples_.length, 1, end - begin);
    Report report;
    for (int64_t first = begin; first < end; first += micro) {
      micro_batch(first, std::min(micro, end - first), report);
    }
    return report;
  }

 private:
  bool diffusion() const { return model_.config().diffusion.has_value(); }

  void micro_batch(int64_t first, int64_t count, Report& report) {
    const int64_t length = examples_.length, rows = count * length;
    DraftLosses draft_losses(model_, config_);  // outlives the tape, as these do
    std::optional<SequenceShards> shards;
    Tape tape;
    Context context;
    context.tape = &tape;
    context.precision = config_.precision;
    context.training_step = step_;
    const std::span<const int32_t> tokens = examples_.tokens_of(first, rows);
    Batch batch;
    if (!diffusion()) {
      batch = source_.batch(tokens);
      if (config_.positions.skip > 0) skip_positions(config_, seed_, examples_, first, batch);
      if (shares_sequences()) shards.emplace(ranks_, config_.sequence_parallel, batch);
    }
    ForwardObserver observer;
    draft_losses.watch(observer);
    // A mean over the rows of this forward: its share in the mean over those of the step.
    const int64_t own_rows = shards ? shards->local().rows() : rows;
    const double share =
        static_cast<double>(own_rows) / static_cast<double>(examples_.count * length);
    observer.on_loss = [&](const LayerLoss& layer_loss) {
      report.layer_losses[layer_loss.name] += share * double{*layer_loss.value.data()};
      if (!layer_loss.value.requires_grad()) return;
      layer_loss.value.give_grad(
          Tensor::full(layer_loss.value.shape(), static_cast<float>(share * layer_loss.weight)));
    };
    observer.on_load = [&](const ExpertLoad& load) { report.loads.add(load); };
    CrossEntropy result;
    if (diffusion()) {
      result = masked_loss(model_, context, examples_, first, count, seed_, gradient_scale_,
                           config_.z_loss, observer);
    } else {
      const SequenceShards* of_ranks = shards ? &*shards : nullptr;
      const Tensor hidden = shards ? model_.forward(context, shards->local(), observer)
                                   : model_.forward(context, batch, observer);
      const std::span<const int32_t> wanted = examples_.targets_of(first, rows);
      result = source_.loss(model_, context, hidden, shards ? shards->local() : CheckedBatch(batch),
                            own_part(of_ranks, wanted), gradient_scale_, config_.z_loss);
      draft_losses.record(context, observer, hidden, batch, wanted, length, gradient_scale_,
                          of_ranks);
    }
    report.loss += result.nll * gradient_scale_;
    report.correct += result.correct;
    tape.run_backward();
  }

  const Model& model_;
  const TrainConfig& config_;
  const DataSource& source_;
  const Examples& examples_;
  Ranks& ranks_;
  int64_t step_;
  uint64_t seed_;
  double gradient_scale_ = 0;
};

}  // namespace

StepResult train_step(const Model& model, const TrainConfig& config, DataSource& source,
                      TrainingState& state, double learning_rate, uint64_t seed) {
  require(!model.config().diffusion || config.early_exit == 0, "early_exit",
          "{} in a model that fills in masked tokens", config.early_exit);
  require(!model.config().sound || config.early_exit == 0, "early_exit", "{} in a model of sound",
          config.early_exit);
  require(!model.config().diffusion || config.positions.skip == 0, "position",
          "positions are skipped in a model that fills in masked tokens");
  require(config.positions.skip <= position_limit(model), "position",
          "skips within {} tokens, and the model has positions for {}", config.positions.skip,
          position_limit(model));
  require(config.positions.skip == 0 || source.length() <= config.positions.skip, "position",
          "skips within {} tokens in examples of {}", config.positions.skip, source.length());
  const int64_t sequences = sequences_per_step(config, source), groups = config.gradient_groups;
  const bool shared = config.sequence_parallel != SequenceParallel::none;
  // Ranks that make a group together, and how many such teams make groups of their own.
  const int64_t together = ranks_together(config, state.ranks.count());
  const int64_t teams = state.ranks.count() / together, team = state.ranks.rank() / together;
  require(!shared || !model.config().diffusion, "sequence_parallel",
          "{} in a model that fills in masked tokens", name_of(config.sequence_parallel));
  if (groups % teams != 0) {
    throw Error("gradient_groups",
                together == 1 ? fmt::format("{} on {} ranks", groups, teams)
                              : fmt::format("{} on {} groups of {} ranks", groups, teams, together),
                fmt::format("choose a multiple of {}: --set gradient_groups=N", teams));
  }
  if (sequences < groups) {
    throw Error("gradient_groups",
                fmt::format("{} in a step of {} sequences ({} tokens of windows of {})", groups,
                            sequences, config.batch_tokens, source.length()),
                "raise batch_tokens, or use fewer ranks");
  }

  // All examples first: the loss is a mean over the targets of the whole step.
  const Examples examples =
      read_examples(source, static_cast<uint64_t>(state.step * sequences), sequences);
  RankGroup sharing(state.ranks, team * together, together);
  StepPasses passes(model, config, source, examples, sharing, state.step, seed);
  GradientSum gradients(model, state.ownership, state.ranks);
  std::vector<Report> reports;
  for (int64_t group = team; group < groups; group += teams) {
    reports.push_back(passes.run(group * sequences / groups, (group + 1) * sequences / groups));
    if (groups > 1 || passes.shares_sequences()) gradients.add_round();
  }
  Report total = sum_of_reports(state.ranks, reports);

  const double norm =
      optimizer_step(model, config, state, gradients,
                     {.learning_rate = learning_rate, .loss = total.loss, .sequences = sequences});
  state.tokens += sequences * examples.length;
  return {total.loss, norm, static_cast<double>(total.correct) * passes.gradient_scale(),
          std::move(total.layer_losses), std::move(total.loads)};
}

}  // namespace pronghorn
