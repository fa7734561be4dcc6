// Sounds and what is said in them: folders of both, examples to learn from, and what a model
// writes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/sound.h"
#include "model/model.h"
#include "train/data_source.h"
#include "train/images.h"

namespace pronghorn {

// Where tasks are named, this one stands for sounds of a folder.
inline bool is_sound_task(std::string_view name) { return name == "sound"; }

// Whether a task reads a folder with a part to learn from and one to be judged by.
inline bool is_folder_task(std::string_view name) {
  return is_images_task(name) || is_sound_task(name);
}
// What is in that folder.
inline std::string_view folder_of_task(std::string_view name) {
  return is_sound_task(name) ? "train/labels.tsv and test/labels.tsv"
                             : "train/CLASS and test/CLASS";
}

// Sounds with a text each.
struct SoundSet {
  std::vector<Sound> sounds;
  std::vector<std::string> texts;

  int64_t size() const { return std::ssize(texts); }
  double seconds() const;
  // Changes when a sample, a rate or a text does.
  uint64_t hash() const;
};

// The sounds that FOLDER/labels.tsv lists: lines of a file's name in the folder, a tab, and what is
// said. Throws Error for lines of another form, names that lead out of the folder, texts that are
// empty, longer than kMaxSoundText bytes or not UTF-8, and sounds longer than kMaxSoundSeconds.
SoundSet read_sounds(const std::filesystem::path& folder);

// The two parts of FOLDER, train/ and test/.
struct SoundFolder {
  SoundSet train, test;
  std::vector<std::string> symbols;  // of the texts of the training part, sorted
  std::string identity() const;      // as hash(), of both: guards resumption
};
SoundFolder read_sound_folder(const std::filesystem::path& folder);

constexpr size_t kMaxSoundText = 512;
constexpr double kMaxSoundSeconds = 60;

// Examples of a sound each, which have as many rows as the sound, whatever length() says: that of
// the longest, by which steps and speeds are counted. The tokens of one stand for the sound; its
// targets are the symbols of its text, wherever they are said. Each epoch visits the sounds in a
// new order, a function of (seed, epoch). Held-out examples are those of the test part in order.
class SoundSource final : public DataSource {
 public:
  // Keeps the spectrograms, not the folder. Sounds of another rate than the configuration's are
  // resampled (resampled()). Throws Error where that cannot be, if texts have characters that it
  // has not, or a text has more than its sound's rows can say.
  SoundSource(const SoundConfig& config, const SoundFolder& sounds, uint64_t seed);

  int64_t length() const override { return length_; }
  int64_t vocab_size() const override { return std::ssize(config_.symbols) + 1; }
  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override;
  Batch batch(std::span<const int32_t> tokens) const override;
  // ctc_loss() of the symbols.
  CrossEntropy loss(const Model& model, const Context& context, const Tensor& hidden,
                    const CheckedBatch& batch, std::span<const int32_t> targets,
                    double gradient_scale, double z_loss_weight) const override;
  int64_t held_out_examples() const override { return held_out_; }
  // The share of words that are right (SoundScore).
  double held_out_accuracy(const Model& model, Precision precision) override;

  // Seconds of a sound to learn from, on average, and of all held-out ones.
  double mean_seconds() const { return mean_seconds_; }
  double held_out_seconds() const { return held_out_seconds_; }
  // What is said in a held-out sound.
  const std::string& held_out_text(int64_t example) const;

 private:
  struct Example {
    std::vector<float> rows;  // [rows, features]
    std::vector<int32_t> symbols;
    std::string text;
  };

  void add(const SoundSet& set, std::string_view part);
  void start_epoch(uint64_t epoch);

  SoundConfig config_;
  std::vector<Example> examples_;  // to learn from, then held out
  int64_t learnt_ = 0, held_out_ = 0, length_ = 0;
  double mean_seconds_ = 0, held_out_seconds_ = 0;
  uint64_t seed_;
  std::mutex mutex_;
  uint64_t epoch_ = ~uint64_t{0};
  std::vector<uint32_t> order_;
};

// How well a model writes down what is said.
struct SoundScore {
  int64_t sounds = 0, solved = 0;      // those without an error
  int64_t words = 0, word_errors = 0;  // insertions, deletions and substitutions at least
  int64_t symbols = 0, symbol_errors = 0;
  double sound_seconds = 0, seconds = 0;  // of sound, and of the model to write it down

  // 1 - errors / words, 0 at least.
  double word_accuracy() const { return accuracy(words, word_errors); }
  double symbol_accuracy() const { return accuracy(symbols, symbol_errors); }
  double sound_per_second() const { return seconds > 0 ? sound_seconds / seconds : 0; }

 private:
  static double accuracy(int64_t count, int64_t errors);
};

// All held-out sounds, whose spectrograms the source has. progress: is given the sounds done.
SoundScore evaluate_sound(const Model& model, Precision precision, SoundSource& source,
                          const std::function<void(double)>& progress = {});

// What is said in a sound, by the best score of each row. where: the sound's name, for messages.
// A sound of another rate is resampled. Throws Error where that cannot be, for a sound shorter than
// half a window, and a model of something else.
std::string transcribe(const Model& model, Precision precision, const Sound& sound,
                       std::string_view where = "transcribe");

}  // namespace pronghorn
