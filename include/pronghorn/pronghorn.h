// Pronghorn's public surface: train, load and run efficient language models from C++.
//
// Everything that can fail throws std::runtime_error whose what() is one line: "where: problem
// (remedy)". Nothing here depends on the number of threads: same arguments, same bits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

class Model;  // of the implementation

// How the matrix products of a call round their operands; they always add up in f32. stored: bf16
// for a model whose numbers are stored in bf16 or in fewer bits, which is fastest and rounds
// nothing of it, and f32 for others.
enum class Rounding { stored, f32, bf16 };

// How attention keeps the keys and values of a text: rounded to bf16 or f16 they take half the
// memory of f32, in blocks of 32 whole numbers with a scale a quarter (q8_0) or an eighth (q4_0),
// which needs heads whose widths are multiples of 32.
enum class CacheType { f32, bf16, f16, q8_0, q4_0 };

// How to continue a text. Options out of range throw where they are used.
struct ContinueOptions {
  int64_t max_tokens = 128;
  double temperature = 0;         // 0: always the likeliest token
  int64_t top_k = 0;              // only the k likeliest; 0: all
  double top_p = 1;               // only the likeliest that together reach p
  double min_p = 0;               // only those at least min_p as likely as the likeliest
  double repetition_penalty = 1;  // above 1: against repeating recent tokens
  uint64_t seed = 0;              // same seed, same text
  // The text ends before the first of these; names of special tokens, which are not part of the
  // text, end it too.
  std::vector<std::string> stop = {};
  // End with any of the end tokens that the checkpoint's files name.
  bool stop_at_end_token = true;
  // What the text must follow (docs/serving.md#constrained-texts); at most one of them. grammar: of
  // texts, in the form that llama.cpp made known (GBNF). json_schema: a JSON Schema; "true" is any
  // JSON text. Such a text ends where it is complete; one that reaches max_tokens is not.
  std::string grammar = {}, json_schema = {};
  Rounding rounding = Rounding::stored;
  // Who guesses tokens, several of which the model then checks in one step: "ngram", "suffix",
  // "early-exit:LAYERS", "mtp" or the directory of a smaller model, with commas between several;
  // empty: nobody. It decides how fast a text is written and never what it says.
  std::string draft = {};
  // Of a model that fills in masked tokens (diffusion): steps of the model for each part of the
  // text, 0: one per token; tokens of a part, 0: the model's own, or 32; above 0: a step takes all
  // tokens that are at least so probable.
  int64_t steps = 0, part = 0;
  double threshold = 0;
};

// What continuing a text gave.
struct Continuation {
  enum class End { length, stop_text, end_token, stopped };
  // Without the prompt. A character that the last token begins and does not complete stays in the
  // session: what comes next goes on with it.
  std::string text = {};
  std::vector<int32_t> ids = {};  // of the tokens written, an end token included
  End end = End::length;
  int64_t prompt_tokens = 0, tokens = 0;
  double prompt_seconds = 0, decode_seconds = 0;
  int64_t drafted = 0, accepted = 0;  // tokens guessed, and of these, those that came true
};

// Receives a continuation as it is written, in pieces of whole UTF-8 characters. false ends the
// text there (End::stopped).
using TextCallback = std::function<bool(std::string_view piece)>;

// Numbers of a text's tokens, row by row: values[row * columns + column].
struct TokenMatrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> values = {};
};

// A message of a conversation: role is "system", "user", "assistant" or what else the template
// knows.
struct Message {
  std::string role, content;
};

// A trained tensor of a model.
struct ParameterInfo {
  std::string name;
  std::vector<int64_t> shape;  // a matrix: {outputs, inputs}
};

// What a checkpoint takes, as far as its files tell.
struct MemoryEstimate {
  int64_t weight_bytes = 0;  // of the files of the weights, which are mapped
  int64_t state_bytes = 0;   // of one text of the length asked for
};

// Cross-entropy of a text under a model.
struct Evaluation {
  int64_t tokens = 0;  // predicted
  double bytes = 0;  // of the text that they stand for: the first token of a text is not predicted
  double nll = 0;    // nats, summed over the tokens
  double perplexity = 0;
  double bits_per_byte = 0;
  bool is_bound = false;  // of a diffusion model: nll and what follows are upper bounds, estimated
};

class TextSession;

// Speed of a model, in tokens a second of all sequences together; medians of repeated runs.
struct Speed {
  double prompt = 0, decode = 0;
  int64_t state_bytes = 0;  // of one sequence, after its prompt
};

// What to measure.
struct SpeedOptions {
  int64_t prompt = 512, generate = 64;  // tokens
  int64_t batch = 1;                    // sequences at once
  int repeat = 3;
  Rounding rounding = Rounding::stored;
};

// A model and its tokenizer. A copy is cheap and shares the weights, which never change; all const
// members may be called from several threads. Each call already uses all processors, and calls
// made at once share them: together they take as long as one after the other. Texts that are to
// be written at once are better given to generate() together.
class LanguageModel {
 public:
  struct Parts;  // of the implementation

  // From a checkpoint directory (config.json, *.safetensors and tokenizer files) or a GGUF file, of
  // a family that `pronghorn list` names. adapter: a directory with a LoRA adapter in the layout of
  // PEFT; empty: none. Throws for missing, damaged or unsupported files.
  static LanguageModel load(const std::filesystem::path& checkpoint,
                            const std::filesystem::path& adapter = {});

  // What load() of a checkpoint would take, without reading its numbers. tokens: of the text whose
  // state is counted. Throws as load() does.
  static MemoryEstimate estimate(const std::filesystem::path& checkpoint, int64_t tokens = 4096,
                                 CacheType cache = CacheType::f32);

  // Untrained, from a configuration file; the weights are a function of the seed alone. Its
  // tokens are bytes: a configuration without vocab_size gets 256, a smaller one throws.
  static LanguageModel build(const std::filesystem::path& config, uint64_t seed = 0);

  // Writes the files that load() reads, each replaced atomically. Throws when the disk refuses.
  void save(const std::filesystem::path& directory) const;

  int64_t parameter_count() const;
  // Those that a token meets: fewer in a mixture of experts.
  int64_t active_parameter_count() const;
  int64_t vocab_size() const;
  int64_t hidden_size() const;
  int64_t layers() const;
  // Longest text that the model was trained for, in tokens; 0: its files do not say.
  int64_t trained_context() const;
  // The complete configuration, every default spelled out, as JSON.
  std::string config_json() const;
  // Predicted bytes of the state of one sequence after `tokens` tokens.
  int64_t state_bytes(int64_t tokens, CacheType cache = CacheType::f32) const;

  // The tensors of the model, under Pronghorn's own names for them.
  std::vector<ParameterInfo> parameters() const;
  // The numbers of one, in f32, row by row. Throws if there is none of this name.
  std::vector<float> parameter(std::string_view name) const;
  // A model like this one, held in f32, in which the named tensors have these numbers. Throws for
  // names that it has not, and for too few or too many numbers.
  LanguageModel with_parameters(const std::map<std::string, std::vector<float>>& changed) const;

  // Ids of a text. special: add the tokens that the model expects around a text and read the text
  // of special tokens as those. Throws for what the tokenizer cannot represent.
  std::vector<int32_t> tokenize(std::string_view text, bool special = true) const;
  // The text of ids, special tokens omitted. Throws for an id outside the vocabulary.
  std::string detokenize(std::span<const int32_t> ids) const;
  // Tokens that end a text, as the checkpoint's files name them.
  std::vector<int32_t> end_tokens() const;

  bool has_chat_template() const;
  // The text that the model's template makes of a conversation, for tokenize(text, true) or a
  // session. answer_follows: with what an answer of the model begins with. Throws without a
  // template, and for what it refuses.
  std::string apply_template(const std::vector<Message>& messages,
                             bool answer_follows = true) const;

  // Scores of the next token after each of `ids`, which are read as one fresh text: rows
  // ids.size(), columns vocab_size(), before softmax. A diffusion model sees the text whole, and
  // scores what stands at each place, or after it. Throws for ids outside the vocabulary, and for
  // none.
  TokenMatrix logits(std::span<const int32_t> ids, Rounding rounding = Rounding::stored) const;
  // The last hidden states, normalised: rows ids.size(), columns hidden_size().
  TokenMatrix hidden_states(std::span<const int32_t> ids,
                            Rounding rounding = Rounding::stored) const;
  // ln p of each token given those before it, from the second on: ids.size() - 1 numbers. Scores
  // of a long text never exist at once. Throws for a diffusion model.
  std::vector<double> log_probabilities(std::span<const int32_t> ids,
                                        Rounding rounding = Rounding::stored) const;

  // A session without any text.
  TextSession start(CacheType cache = CacheType::f32) const;
  // A session from TextSession::save(). Throws if the file is damaged, or of another model or cache
  // type.
  TextSession resume(const std::filesystem::path& file, CacheType cache = CacheType::f32) const;

  // Continues `prompt` in a session of its own: start().generate(...).
  Continuation generate(std::string_view prompt, const ContinueOptions& options = {},
                        const TextCallback& on_text = {}) const;
  // Continues several prompts together, a step of the model serving all that have not ended: many
  // times as fast as one after the other. Each text is the one that generate() gives.
  std::vector<Continuation> generate(const std::vector<std::string>& prompts,
                                     const ContinueOptions& options = {}) const;

  // Reads text files or folders (.txt, .jsonl, either in .gz) in windows of `window` tokens, each a
  // fresh sequence, and scores every token but the first of a window. window 0: as in training,
  // else 1024, or the context of the model if that is shorter. Throws for files that are missing
  // or not text, and where nothing is to be predicted.
  Evaluation evaluate(const std::vector<std::filesystem::path>& data, int64_t window = 0,
                      Rounding rounding = Rounding::stored) const;

  // Times prompts of random tokens and decoding after them.
  Speed measure(const SpeedOptions& options = {}) const;

 private:
  friend class TextSession;
  explicit LanguageModel(std::shared_ptr<const Parts> parts);
  std::shared_ptr<const Parts> parts_;
};

// A text that a model is reading or writing, with the model's state. A value: a copy is a fork
// that goes its own way; it shares the memory of the past until either writes. One session is not
// to be used from two threads at once; different ones may be.
class TextSession {
 public:
  TextSession(const TextSession& other);
  TextSession& operator=(const TextSession& other);
  TextSession(TextSession&&) noexcept;
  TextSession& operator=(TextSession&&) noexcept;
  ~TextSession();

  // Lets a model that sees images ("vision" in its configuration) see one, a file of the kinds
  // .png, .pgm and .ppm, before the text. Its rows count as tokens, which are 0 in ids(). Throws
  // for other models, images of another size, and after text.
  void see(const std::filesystem::path& image, Rounding rounding = Rounding::stored);

  // Adds to the text; the model reads it when it next generates or scores. The first text of a
  // session gets the model's special tokens.
  void append(std::string_view text);
  // The same with tokens, as they are. Throws for ids outside the vocabulary.
  void append_ids(std::span<const int32_t> ids);

  // The tokens of the text so far.
  const std::vector<int32_t>& ids() const;
  // The text so far, special tokens omitted.
  std::string text() const;
  // Goes back to the first `length` tokens. Attention forgets the rest; a recurrence goes back a
  // few tokens, and beyond that reads the text again when it is next used; not where it has seen an
  // image. Throws for lengths beyond length(), and for those that are in an image.
  void truncate(int64_t length);

  // Scores of the token that follows the text, before softmax: vocab_size() numbers. Throws if the
  // text is empty.
  std::vector<float> next_logits(Rounding rounding = Rounding::stored);

  // Adds `prompt`, then continues the text; what is generated becomes part of it. on_text receives
  // pieces as soon as no stop text can begin in them. Throws for options out of range, and if the
  // text is empty.
  Continuation generate(std::string_view prompt, const ContinueOptions& options = {},
                        const TextCallback& on_text = {});

  // Tokens of the text so far.
  int64_t length() const;
  // Bytes of the state that the model keeps of it; what forks share counts for each.
  int64_t state_bytes() const;

  // One file, replaced atomically. Throws when the disk refuses.
  void save(const std::filesystem::path& file) const;

 private:
  friend class LanguageModel;
  struct Parts;
  explicit TextSession(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// A class of images, and how probable it is.
struct ImageClass {
  std::string name;
  double probability = 0;  // of all classes together 1
};

// A model that says what is on images ("image" in its configuration), as train() makes it on the
// task "images". A copy is cheap and shares the weights; const members may be called from several
// threads.
class ImageModel {
 public:
  // From a checkpoint directory. Throws for missing or damaged files and for other models.
  static ImageModel load(const std::filesystem::path& checkpoint);

  // All classes of each image, the most probable first. The files are of the kinds .png, .pgm and
  // .ppm. Throws for those that are none, and for images of another size than those it learnt from.
  std::vector<std::vector<ImageClass>> classify(const std::vector<std::filesystem::path>& images,
                                                Rounding rounding = Rounding::stored) const;

 private:
  explicit ImageModel(std::shared_ptr<const Model> model);
  std::shared_ptr<const Model> model_;
};

// What is said in a sound.
struct Transcript {
  std::string text;
  double sound_seconds = 0;  // that the sound lasts
  double seconds = 0;        // that the model took
};

// A model that writes down what is said ("sound" in its configuration), as train() makes it on the
// task "sound". Copies and threads: as of an ImageModel.
class SoundModel {
 public:
  // From a checkpoint directory. Throws for missing or damaged files and for other models.
  static SoundModel load(const std::filesystem::path& checkpoint);

  // What is said in a WAV file. Sounds of another rate than those it learnt from are resampled.
  // Throws for files that are none, sounds that are too short for a row, and other rates in builds
  // without libsamplerate.
  Transcript transcribe(const std::filesystem::path& sound,
                        Rounding rounding = Rounding::stored) const;

 private:
  explicit SoundModel(std::shared_ptr<const Model> model);
  std::shared_ptr<const Model> model_;
};

// What a training step reports.
struct TrainingProgress {
  int64_t step = 0, tokens = 0;
  double seconds = 0;                 // of training steps so far
  double loss = 0;                    // of this step, nats per token
  double learning_rate = 0;           // of this step
  double held_out_bits_per_byte = 0;  // 0: not measured after this step
};

// Called after each step; false ends the run there with its state saved, to be resumed.
using TrainingCallback = std::function<bool(const TrainingProgress&)>;

// Generated examples that tell architectures apart; `pronghorn list` names the tasks. "images" and
// "sound" are none of them: they stand for images of classes and for sounds in which words are
// said, of which `data` names one folder, with train/CLASS/*.png and test/CLASS/*.png, or with
// train/labels.tsv and test/labels.tsv and the WAV files that these list. Nor is "captions", for a
// configuration with "vision": images with texts, of which train/captions.tsv and test/captions.tsv
// of the folder have a line FILE<TAB>CAPTION each.
struct SyntheticTask {
  std::string name = {};                 // empty: none
  int64_t length = 256;                  // tokens of an example
  int64_t vocab_size = 0;                // 0: the task's own
  int64_t items = 0;                     // things to remember; 0: the task's own
  int64_t questions = 1, haystacks = 1;  // of needle tasks: at most, in an example
  int64_t curriculum = 0;  // tokens over which the two before come down to one; 0: they stay
};

// Changes of low rank to matrices, trained in place of a checkpoint's weights (LoRA).
struct AdapterOptions {
  int64_t rank = 0;  // 0: none; the weights themselves are trained
  double alpha = 0;  // the changes are multiplied by alpha / rank; 0: alpha = 2 rank
  std::vector<std::string> targets = {};  // last parts of names, "q_proj"; empty: all of the blocks
};

struct TrainingOptions {
  std::filesystem::path config = {};  // a configuration file, or a checkpoint to go on from
  // Files, folders: .txt, .jsonl, either in .gz. Of a task only what it hides needles in.
  std::vector<std::filesystem::path> data = {};
  std::filesystem::path directory = {};  // for the model, its training state and log.jsonl

  // How long; exactly one is above 0. A run of `seconds` counts its steps only.
  double seconds = 0;
  int64_t tokens = 0, steps = 0;

  int64_t vocab_size = 0;     // of a SentencePiece BPE to train on the data; 0: bytes
  double held_out = 0.05;     // share of the text never trained on
  std::string settings = {};  // JSON over the "train" object of the configuration; empty: none
  uint64_t seed = 0;
  bool resume = false;  // continue the run in `directory`, to the same bits

  SyntheticTask task = {};               // with a name: learn this instead of texts
  std::filesystem::path tokenizer = {};  // of this model, instead of one of vocab_size
  int64_t mtp_heads = -1;      // for multi-token prediction; -1: as many as the configuration says
  int64_t evaluate_every = 0;  // steps between held-out scores; 0: about twenty in the run
  double checkpoint_seconds = 30;  // between saved states

  // Of a checkpoint that goes on:
  AdapterOptions adapter = {};
  bool masked_diffusion = false;  // learns to fill in masked tokens, seeing both ways
  int64_t mask_token = -1;        // -1: the first that its tokenizer does not have
};

struct TrainingResult {
  int64_t steps = 0, tokens = 0;
  double seconds = 0;                   // of training steps: scores and saved states do not count
  double tokens_per_second = 0;         // tokens / seconds: of the whole run, resumed or not
  double held_out_bits_per_byte = 0;    // at the end; 0 if the run was stopped, or on a task
  bool stopped = false;                 // by the callback, SIGINT or SIGTERM
  double start_bits_per_byte = 0;       // of a checkpoint that goes on, before its first step
  double best_bits_per_byte = 0;        // of all scores of the run
  bool is_bound = false;                // of a diffusion model: these are upper bounds, estimated
  std::optional<double> accuracy = {};  // of a task: the share of answers that are right
  int64_t parameters = 0;
  int64_t peak_bytes = 0;  // memory that training held at most; 0 if all steps were done before
  int64_t rank = 0;        // of this process among those of the run; the first writes the files
};

// Trains a model, as `pronghorn train` does; LanguageModel::load(options.directory) then loads it.
// While it runs, SIGINT and SIGTERM end the run after the current step. Processes that `mpirun` has
// started together train together; all call this with the same options, and an error of one ends
// all of them. Throws for bad options,
// configurations and data, and for a loss that is not finite; the last good state is then on disk.
TrainingResult train(const TrainingOptions& options, const TrainingCallback& on_step = {});

// Which architectures to compare, and on what.
struct ComparisonOptions {
  std::vector<std::filesystem::path> configs = {};  // configuration files, one per architecture
  std::vector<std::filesystem::path> data = {};     // files, folders: .txt, .jsonl, either in .gz
  std::filesystem::path directory = {};             // for models, results.json and report.html

  // Of training, for each architecture; exactly one is above 0.
  double seconds = 0;
  int64_t tokens = 0;

  int64_t vocab_size = 4096;  // of a SentencePiece BPE to train on the data; 0: bytes
  std::vector<int64_t> contexts = {512, 4096, 32768, 262144};  // to measure inference at
  double context_seconds = 60;  // contexts that would take longer to read are omitted
  std::string settings = {};    // JSON over the "train" object of each configuration; empty: none
  uint64_t seed = 0;
  int64_t seeds = 1;  // trains each so often, to tell differences from chance

  // With a name: train on this task instead of texts, and judge by examples of its length times
  // each of task_multiples.
  SyntheticTask task = {.length = 1024};
  std::vector<int64_t> task_multiples = {1, 2, 4, 8, 16};
  int64_t task_examples = 50;  // at each length
  double mqar_seconds = 0;     // on texts: train each on associative recall, too, for so long
};

// Trains the architectures within the same budget on the same text and measures them, as
// `pronghorn compare` does; returns results.json, which says of each what was measured or why it
// failed. An interrupted comparison of the same options goes on where it ended. Processes that
// mpirun started share the architectures out; the first returns all results, the others an empty
// text. Throws for bad options, data or configurations, before anything is trained.
std::string compare(const ComparisonOptions& options);

// Whether messages and progress bars appear on stderr (they start hidden, warnings excepted). Sets
// the default logger of spdlog, which this library logs through.
void show_messages(bool shown);

// Threads used by every call; starts as the number of processors, or PRONGHORN_THREADS.
void use_threads(int count);

}  // namespace pronghorn
