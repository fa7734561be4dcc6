#include "train/sound.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/edit_distance.h"
#include "base/error.h"
#include "base/files.h"
#include "base/lines.h"
#include "base/log.h"
#include "base/quote.h"
#include "base/random.h"
#include "formats/resample.h"
#include "formats/utf8.h"
#include "ops/ctc.h"
#include "tensor/pool.h"
#include "train/listed_file.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxLabels = 64 << 20;  // bytes of a list
constexpr int64_t kMaxSounds = 1 << 22;
constexpr int64_t kForwardRows = 8192;  // as much as evaluation takes at a time

// The rows of a sound, at the model's rate. where: which it is, for messages.
std::vector<float> rows_of(const SoundConfig& config, const LogMel& log_mel, const Sound& sound,
                           std::string_view where) {
  const int64_t rate = config.mel.sample_rate;
  const bool same = sound.sample_rate == rate;
  const Sound changed = same ? Sound() : resampled(sound, rate, where);
  try {
    return stacked_rows(config, log_mel(same ? sound.samples : changed.samples));
  } catch (const Error& error) {
    throw Error(where, error.what());
  }
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if (end > at) words.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

// One segment of the batch.
void add_rows(Batch& batch, int64_t rows) {
  Segment segment;
  segment.first_row = batch.rows();
  segment.length = rows;
  batch.segments.push_back(std::move(segment));
  for (int64_t row = 0; row < rows; ++row) batch.positions.push_back(static_cast<int32_t>(row));
}

// What the scores of each segment say.
std::vector<std::vector<int32_t>> greedy(const Tensor& scores, const CheckedBatch& batch) {
  const PooledVector<float> numbers = scores.read();
  std::vector<std::vector<int32_t>> said;
  for (const Segment& segment : batch.segments()) {
    const auto first = static_cast<size_t>(segment.first_row * scores.columns());
    const auto count = static_cast<size_t>(segment.length * scores.columns());
    said.push_back(
        ctc_greedy(std::span<const float>(numbers.data() + first, count), scores.columns()));
  }
  return said;
}

const SoundConfig& sound_of(const Model& model) {
  require(model.config().sound.has_value(), "sound", "the model is of {}, not of sound",
          model.config().subject());
  return *model.config().sound;
}

}  // namespace

double SoundSet::seconds() const {
  double seconds = 0;
  for (const Sound& sound : sounds) seconds += sound.seconds();
  return seconds;
}

uint64_t SoundSet::hash() const {
  uint64_t hash = 0;
  for (size_t i = 0; i < sounds.size(); ++i) {
    const std::vector<float>& samples = sounds[i].samples;
    hash = XXH3_64bits_withSeed(samples.data(), samples.size() * sizeof(float), hash);
    hash = XXH3_64bits_withSeed(&sounds[i].sample_rate, sizeof(int64_t), hash);
    hash = XXH3_64bits_withSeed(texts[i].data(), texts[i].size(), hash);
  }
  return hash;
}

SoundSet read_sounds(const fs::path& folder) {
  const fs::path list = folder / "labels.tsv";
  if (!fs::exists(list)) {
    throw Error(list.string(), "is missing",
                "it needs lines of a WAV file's name, a tab, and what is said");
  }
  const std::string text = read_file(list, kMaxLabels);
  SoundSet set;
  std::set<std::string> names;
  std::string_view rest = text;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const std::string_view line = take_line(rest);
    if (line.empty()) continue;
    const std::string where = fmt::format("{}, line {}", list.string(), number);
    const size_t tab = line.find('\t');
    require(tab != line.npos, where, "{} has no tab between a file and what is said", quote(line));
    const std::string name(line.substr(0, tab)), said(line.substr(tab + 1));
    require(!words_of(said).empty() && said.size() <= kMaxSoundText &&
                find_invalid_utf8(said) == said.npos,
            where, "{} is no text of up to {} bytes", quote(said), kMaxSoundText);
    require(names.insert(name).second, where, "{} is there twice", quote(name));
    require(set.size() < kMaxSounds, where, "is one sound too many");
    const fs::path file = listed_file(folder, name, where);
    Sound sound = read_sound_file(file);
    require(sound.seconds() <= kMaxSoundSeconds, file.string(), "is {} long, more than {}",
            format_duration(sound.seconds()), format_duration(kMaxSoundSeconds));
    set.sounds.push_back(std::move(sound));
    set.texts.push_back(said);
  }
  require(set.size() > 0, list.string(), "lists no sounds");
  return set;
}

std::string SoundFolder::identity() const {
  return fmt::format("sound {:016x} {:016x}", train.hash(), test.hash());
}

SoundFolder read_sound_folder(const fs::path& folder) {
  for (const char* part : {"train", "test"}) {
    if (fs::is_directory(folder / part)) continue;
    throw Error(folder.string(), fmt::format("has no folder {}", quote(part)),
                "it needs train/labels.tsv and test/labels.tsv, and the WAV files they list");
  }
  SoundFolder sounds;
  sounds.train = read_sounds(folder / "train");
  sounds.test = read_sounds(folder / "test");
  sounds.symbols = symbols_of(sounds.train.texts, (folder / "train").string());
  return sounds;
}

SoundSource::SoundSource(const SoundConfig& config, const SoundFolder& sounds, uint64_t seed)
    : config_(config), seed_(seed) {
  add(sounds.train, "train");
  learnt_ = std::ssize(examples_);
  add(sounds.test, "test");
  held_out_ = std::ssize(examples_) - learnt_;
  mean_seconds_ = sounds.train.seconds() / static_cast<double>(learnt_);
  held_out_seconds_ = sounds.test.seconds();
  order_.resize(static_cast<size_t>(learnt_));
}

void SoundSource::add(const SoundSet& set, std::string_view part) {
  const LogMel log_mel(config_.mel);
  for (size_t i = 0; i < set.sounds.size(); ++i) {
    const std::string where = fmt::format("sound {} of {}", i + 1, part);
    Example example;
    example.text = set.texts[i];
    example.rows = rows_of(config_, log_mel, set.sounds[i], where);
    example.symbols = encode_symbols(config_, example.text, where);
    const int64_t rows = std::ssize(example.rows) / config_.features();
    const int64_t least = ctc_rows(example.symbols);
    if (rows < least) {
      throw Error(
          where,
          fmt::format("has {} rows for {}, which needs {}", rows, quote(example.text), least),
          "take fewer frames for a row (\"stack\"), or leave it out");
    }
    length_ = std::max(length_, rows);
    examples_.push_back(std::move(example));
  }
}

void SoundSource::start_epoch(uint64_t epoch) {
  Random random(seed_ + epoch * 0x9E3779B97F4A7C15ull, "sound order");
  std::iota(order_.begin(), order_.end(), 0u);
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);
  epoch_ = epoch;
}

void SoundSource::fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) {
  const auto count = static_cast<uint64_t>(learnt_);
  uint64_t example = 0;
  if (index >= kHeldOutExamples) {
    example = count + (index - kHeldOutExamples) % static_cast<uint64_t>(held_out_);
  } else {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (index / count != epoch_) start_epoch(index / count);
    example = order_[index % count];
  }
  std::ranges::fill(tokens, static_cast<int32_t>(example));
  std::ranges::fill(targets, -1);
  // No text has more symbols than rows, and no sound more rows than length().
  std::ranges::copy(examples_[example].symbols, targets.begin());
}

Batch SoundSource::batch(std::span<const int32_t> tokens) const {
  Batch batch;
  PooledVector<float> numbers;
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(length_)) {
    const std::vector<float>& rows = examples_.at(static_cast<size_t>(tokens[first])).rows;
    numbers.insert(numbers.end(), rows.begin(), rows.end());
    add_rows(batch, std::ssize(rows) / config_.features());
  }
  batch.embeddings = Tensor::from(numbers, {batch.rows(), config_.features()});
  return batch;
}

CrossEntropy SoundSource::loss(const Model& model, const Context& context, const Tensor& hidden,
                               const CheckedBatch& batch, std::span<const int32_t> targets,
                               double gradient_scale, double z_loss_weight) const {
  require(z_loss_weight == 0, "z_loss", "{} in a model of sound", z_loss_weight);
  std::vector<std::vector<int32_t>> symbols;
  for (size_t first = 0; first < targets.size(); first += static_cast<size_t>(length_)) {
    const auto own = targets.subspan(first, static_cast<size_t>(length_));
    symbols.emplace_back(own.begin(), std::ranges::find(own, -1));
  }
  return ctc_loss(context, model.logits(context, hidden), batch, symbols, gradient_scale);
}

double SoundSource::held_out_accuracy(const Model& model, Precision precision) {
  return evaluate_sound(model, precision, *this).word_accuracy();
}

const std::string& SoundSource::held_out_text(int64_t example) const {
  return examples_.at(static_cast<size_t>(learnt_ + example)).text;
}

double SoundScore::accuracy(int64_t count, int64_t errors) {
  if (count == 0) return 0;
  return std::max(0.0, 1 - static_cast<double>(errors) / static_cast<double>(count));
}

SoundScore evaluate_sound(const Model& model, Precision precision, SoundSource& source,
                          const std::function<void(double)>& progress) {
  const SoundConfig& config = sound_of(model);
  Context context;
  context.precision = precision;
  SoundScore score;
  const int64_t length = source.length(), all = source.held_out_examples();
  const int64_t together = std::max<int64_t>(1, kForwardRows / length);
  for (int64_t first = 0; first < all; first += together) {
    const int64_t count = std::min(together, all - first);
    std::vector<int32_t> tokens(static_cast<size_t>(count * length)), targets(tokens.size());
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i * length), size = static_cast<size_t>(length);
      source.fill(kHeldOutExamples + static_cast<uint64_t>(first + i),
                  std::span(tokens).subspan(at, size), std::span(targets).subspan(at, size));
    }
    const Batch batch = source.batch(tokens);
    const double start = now_seconds();
    const std::vector<std::vector<int32_t>> said =
        greedy(model.logits(context, model.forward(context, batch)), batch);
    score.seconds += now_seconds() - start;
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<int32_t>& symbols = said[static_cast<size_t>(i)];
      const std::string& text = source.held_out_text(first + i);
      const std::vector<int32_t> wanted = encode_symbols(config, text, "sound");
      const std::vector<std::string> words = words_of(text);
      const auto errors = static_cast<int64_t>(edit_distance(wanted, symbols));
      score.symbols += std::ssize(wanted);
      score.symbol_errors += errors;
      score.words += std::ssize(words);
      score.word_errors +=
          static_cast<int64_t>(edit_distance(words, words_of(decode_symbols(config, symbols))));
      score.solved += errors == 0;
    }
    score.sounds += count;
    if (progress) progress(static_cast<double>(score.sounds));
  }
  score.sound_seconds = source.held_out_seconds();
  return score;
}

std::string transcribe(const Model& model, Precision precision, const Sound& sound,
                       std::string_view where) {
  const SoundConfig& config = sound_of(model);
  Context context;
  context.precision = precision;
  const std::vector<float> rows = rows_of(config, LogMel(config.mel), sound, where);
  Batch batch;
  add_rows(batch, std::ssize(rows) / config.features());
  batch.embeddings = Tensor::from(rows, {batch.rows(), config.features()});
  const Tensor scores = model.logits(context, model.forward(context, batch));
  return decode_symbols(config, greedy(scores, batch).front());
}

}  // namespace pronghorn
