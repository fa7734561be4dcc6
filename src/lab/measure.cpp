#include "lab/measure.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/random.h"
#include "model/text_cost.h"

namespace pronghorn::lab {
namespace {

// Decode steps of one measurement, and how many measurements the median is of.
constexpr int64_t kDecodeSteps = 64;
constexpr int kDecodeRepeats = 9;

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  Random random(seed, "bench tokens");
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) {
    token = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab_size)));
  }
  return tokens;
}

int32_t likeliest(const Tensor& logits, int64_t row) {
  const float* scores = logits.row(row);
  return static_cast<int32_t>(std::max_element(scores, scores + logits.columns()) - scores);
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  require(!values.empty(), "measurement", "nothing was measured");
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {median, values.front(), values.back()};
}

std::vector<std::vector<int32_t>> bench_prompts(const Model& model, const BenchOptions& options) {
  std::vector<std::vector<int32_t>> prompts;
  for (const std::vector<int32_t>& text : options.texts) {
    prompts.emplace_back(text.begin(), text.begin() + options.prompt);
  }
  for (int64_t s = 0; options.texts.empty() && s < options.batch; ++s) {
    prompts.push_back(
        random_tokens(options.prompt, model.config().vocab_size, static_cast<uint64_t>(s)));
  }
  return prompts;
}

Tensor read_prompts(const Model& model, const Context& context, std::vector<SequenceState>& states,
                    const std::vector<std::vector<int32_t>>& prompts) {
  const auto length = static_cast<int64_t>(prompts.front().size());
  const auto count = static_cast<int64_t>(states.size());
  const int64_t piece = std::max<int64_t>(1, kPromptPiece / count);
  Tensor last = Tensor::empty({count, model.config().hidden_size});
  const auto read = [&](int64_t done, int64_t now) {
    Batch batch;
    for (size_t s = 0; s < states.size(); ++s) {
      add_segment(
          batch, states[s],
          std::span(prompts[s]).subspan(static_cast<size_t>(done), static_cast<size_t>(now)));
    }
    const Tensor hidden = model.forward(context, batch);
    if (done + now < length) return;
    for (int64_t s = 0; s < count; ++s) {
      last.row_slice(s, 1).copy_from(hidden.row_slice((s + 1) * now - 1, 1));
    }
  };
  read_in_pieces(length, read, piece);
  return model.logits(context, last);
}

Tensor decode_step(const Model& model, const Context& context, std::vector<SequenceState>& states,
                   const Tensor& logits, std::span<const std::vector<int32_t>> texts) {
  Batch batch;
  for (size_t s = 0; s < states.size(); ++s) {
    const int32_t token = texts.empty() ? likeliest(logits, static_cast<int64_t>(s))
                                        : texts[s][static_cast<size_t>(states[s].length())];
    add_segment(batch, states[s], {&token, 1});
  }
  return model.logits(context, model.forward(context, batch));
}

BenchResult bench_model(const Model& model, const BenchOptions& options) {
  Context context;
  context.precision = options.precision;
  const std::vector<std::vector<int32_t>> prompts = bench_prompts(model, options);
  std::vector<double> prefill, decode;
  BenchResult result;
  Progress progress("bench", options.repeat + 1, "runs");
  for (int run = 0; run <= options.repeat; ++run) {
    progress.update(run);
    std::vector<SequenceState> states;
    for (int64_t s = 0; s < options.batch; ++s) {
      states.push_back(model.new_state(options.cache));
    }
    const double start = now_seconds();
    Tensor logits = read_prompts(model, context, states, prompts);
    const double middle = now_seconds();
    result.state_bytes = states.front().bytes();
    for (int64_t i = 0; i < options.generate; ++i) {
      logits = decode_step(model, context, states, logits, options.texts);
    }
    const double end = now_seconds();
    result.kept_shares = model.measured_shares(states.front());
    if (run == 0) continue;  // the first run packs weights and fills caches
    const auto batch = static_cast<double>(options.batch);
    prefill.push_back(static_cast<double>(options.prompt) * batch / (middle - start));
    decode.push_back(static_cast<double>(options.generate) * batch / (end - middle));
  }
  result.prefill = spread_of(prefill);
  result.decode = spread_of(decode);
  return result;
}

std::vector<DraftBenchRow> bench_drafters(const Model& model, const Tokenizer& tokenizer,
                                          std::span<const std::vector<int32_t>> prompts,
                                          std::span<const std::string> drafters,
                                          const DraftBenchOptions& options) {
  require(!prompts.empty(), "bench", "no prompts");
  std::vector<DraftBenchRow> rows(1);
  std::vector<std::unique_ptr<Speculation>> speculations(1);
  for (const std::string& name : drafters) {
    rows.push_back({name, {}, 1, true, {}});
    speculations.push_back(
        std::make_unique<Speculation>(make_drafter(name, model, tokenizer), options.speculation));
  }
  GenerateOptions generation;
  generation.context = ContextLimit::ignore;
  generation.max_tokens = options.generate;
  generation.sampling.temperature = options.temperature;
  generation.stop_at_eos = false;
  generation.stop = options.stop;
  generation.precision = options.precision;
  const auto batch = static_cast<size_t>(options.batch);
  std::vector<std::vector<double>> rates(rows.size());
  std::vector<std::string> texts(prompts.size());
  Progress progress("drafters", static_cast<double>((options.repeat + 1) * prompts.size()), "runs");
  for (int run = 0; run <= options.repeat; ++run) {
    std::vector<double> seconds(rows.size());
    std::vector<int64_t> tokens(rows.size());
    for (const auto& speculation : speculations) {
      if (speculation != nullptr) speculation->stats() = {};
    }
    for (size_t first = 0; first < prompts.size(); first += batch) {
      progress.update(static_cast<double>(static_cast<size_t>(run) * prompts.size() + first));
      const size_t count = std::min(batch, prompts.size() - first);
      for (size_t turn = 0; turn < rows.size(); ++turn) {
        // Each is first once: what comes later on a warm machine runs a little slower.
        const size_t r = (turn + static_cast<size_t>(run)) % rows.size();
        std::vector<Session> sessions(count, Session(model, options.cache));
        std::vector<Generation> generations;
        for (size_t i = 0; i < count; ++i) {
          generations.push_back({&sessions[i], prompts[first + i], generation, {}, {}});
          generations.back().options.sampling.seed = first + i;
        }
        double longest = 0;
        const auto results = generate(model, tokenizer, generations, speculations[r].get());
        for (size_t i = 0; i < count; ++i) {
          longest = std::max(longest, results[i].decode_seconds);
          tokens[r] += results[i].tokens;
          if (r == 0) texts[first + i] = results[i].text;
          rows[r].same_text &= results[i].text == texts[first + i];
        }
        seconds[r] += longest;
      }
    }
    if (run == 0 && options.repeat > 0) continue;  // packs weights, fills caches
    for (size_t r = 0; r < rows.size(); ++r) {
      rates[r].push_back(static_cast<double>(tokens[r]) / seconds[r]);
      if (speculations[r] != nullptr) rows[r].stats = speculations[r]->stats();
    }
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    rows[r].tokens_per_second = spread_of(rates[r]);
    // Run by run, since a machine's speed drifts more than drafters differ.
    std::vector<double> ratios;
    for (size_t run = 0; run < rates[r].size(); ++run) {
      ratios.push_back(rates[r][run] / rates[0][run]);
    }
    rows[r].speed_up = spread_of(ratios).median;
  }
  return rows;
}

std::vector<ContextPoint> measure_contexts(const Model& model, std::span<const int64_t> contexts,
                                           std::span<const int32_t> text,
                                           const ContextOptions& options) {
  require(!text.empty(), "measurement", "no text to fill the contexts with");
  Context context;
  context.precision = options.precision;
  struct End {
    SequenceState state;
    Tensor logits;
  };
  std::vector<ContextPoint> points;
  std::vector<End> ends;  // where each context ends
  SequenceState state = model.new_state();
  Tensor logits;
  double reading = 0;  // seconds spent so far
  // Work of a prompt, to foresee how long the next context will take.
  const auto work = [&](double length) {
    const TokenCost cost = text_cost(model, length);
    return length * (cost.matmul + cost.sequence);
  };
  {
    // Once, unmeasured: packs the weights and warms the caches.
    std::vector<SequenceState> warm = {model.new_state()};
    std::vector<std::vector<int32_t>> prompt(1);
    for (int64_t i = 0; i < 256; ++i) {
      prompt[0].push_back(text[static_cast<size_t>(i) % text.size()]);
    }
    logits = read_prompts(model, context, warm, prompt);
    for (int i = 0; i < 4; ++i) logits = decode_step(model, context, warm, logits, {});
  }
  Progress progress("contexts", static_cast<double>(contexts.back()), "tokens");
  for (const int64_t target : contexts) {
    if (state.length() > 0) {
      const double expected =
          reading * work(static_cast<double>(target)) / work(static_cast<double>(state.length()));
      if (expected > options.max_seconds) break;
    }
    const double start = now_seconds();
    read_in_pieces(target - state.length(), [&](int64_t, int64_t count) {
      std::vector<int32_t> tokens;
      for (int64_t i = 0; i < count; ++i) {
        tokens.push_back(text[static_cast<size_t>(state.length() + i) % text.size()]);
      }
      const Tensor hidden = model.forward(context, continue_sequence(state, tokens));
      logits = model.logits(context, hidden.row_slice(count - 1, 1));
      progress.update(static_cast<double>(state.length()));
    });
    reading += now_seconds() - start;

    ContextPoint point;
    point.context = target;
    point.prompt_tokens_per_second = static_cast<double>(target) / reading;
    point.state_bytes = state.bytes();
    points.push_back(point);
    ends.push_back({state, logits});
  }
  // In turns, so that a machine whose speed drifts treats all contexts alike.
  std::vector<std::vector<double>> rates(points.size());
  for (int repeat = 0; repeat < kDecodeRepeats; ++repeat) {
    for (size_t i = 0; i < points.size(); ++i) {
      std::vector<SequenceState> fork = {ends[i].state};
      // The first step copies shared pages, unmeasured.
      Tensor scores = decode_step(model, context, fork, ends[i].logits, {});
      const double begin = now_seconds();
      for (int64_t step = 0; step < kDecodeSteps; ++step) {
        scores = decode_step(model, context, fork, scores, {});
      }
      rates[i].push_back(static_cast<double>(kDecodeSteps) / (now_seconds() - begin));
    }
  }
  for (size_t i = 0; i < points.size(); ++i) {
    points[i].decode_tokens_per_second = spread_of(rates[i]).median;
  }
  return points;
}

}  // namespace pronghorn::lab
