// pronghorn chat: a conversation with a model.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "base/terminal.h"
#include "command.h"
#include "decode/conversation.h"
#include "line_input.h"
#include "model/weight_bytes.h"
#include "output.h"

namespace pronghorn::app {
namespace {

constexpr std::string_view kHelp =
    "/help             this list\n"
    "/system TEXT      another system message (none: without TEXT)\n"
    "/reset            begin again, with the same system message\n"
    "/regenerate       another answer to the last message\n"
    "/save FILE        keep the conversation, with the model's state\n"
    "/load FILE        go on with a conversation that was kept\n"
    "/stats            speed and state\n"
    "/exit             leave (or Ctrl-D)\n"
    "//TEXT            a message that begins with a slash\n"
    "Ctrl-C ends an answer, and nothing else.\n";

std::atomic<bool> interrupt_wanted{false};

// While it lives, Ctrl-C ends an answer and not the program.
class InterruptsAnswers {
 public:
  InterruptsAnswers() {
    struct sigaction action {};
    action.sa_handler = [](int) { interrupt_wanted = true; };
    ::sigaction(SIGINT, &action, &before_);  // without SA_RESTART: waiting for a line ends too
  }
  ~InterruptsAnswers() { ::sigaction(SIGINT, &before_, nullptr); }
  InterruptsAnswers(const InterruptsAnswers&) = delete;
  InterruptsAnswers& operator=(const InterruptsAnswers&) = delete;

 private:
  struct sigaction before_ {};
};

double per_second(int64_t tokens, double seconds) {
  return static_cast<double>(tokens) / std::max(1e-9, seconds);
}

class Chat {
 public:
  explicit Chat(const WritingOptions& options)
      : options_(options),
        loaded_(load_text_model(options.model, options.adapter)),
        conversation_(*loaded_.model, *loaded_.tokenizer, loaded_.format, options.cache),
        generate_(options.generate),
        interactive_(!options.json && is_terminal(STDIN_FILENO) && is_terminal(STDOUT_FILENO)),
        lines_(interactive_) {
    generate_.precision = options.precision.value_or(stored_precision(*loaded_.model));
    generate_.context = limit_of(options.generate.context, options.cache, *loaded_.model);
    if (!options.session.empty() && std::filesystem::exists(options.session)) {
      conversation_.load(options.session);
    }
    if (!options.system.empty()) conversation_.set_system(options.system);
    if (!options.draft.empty()) {
      speculation_.emplace(make_drafter(options.draft, *loaded_.model, *loaded_.tokenizer),
                           options.speculation);
    }
  }

  void run() {
    const InterruptsAnswers scope;
    if (interactive_) {
      say(fmt::format("{}, precision {}; /help lists the commands\n", options_.model.string(),
                      name_of(generate_.precision)));
    }
    while (!done_) {
      interrupt_wanted = false;
      const std::optional<std::string> line = lines_.next("> ");
      if (!line && lines_.interrupted()) continue;
      if (!line) break;
      take(*line);
    }
    if (interactive_) say("\n");
    if (!options_.session.empty() && saved_ != options_.session) {
      conversation_.save(options_.session);
    }
    if (options_.json) print_document();
  }

 private:
  // To the person, not part of what the model says.
  static void say(std::string_view text) {
    fmt::print(stderr, "{}", text);
    std::fflush(stderr);
  }

  void take(const std::string& line) {
    try {
      if (line.starts_with("//")) return answer(line.substr(1));
      if (line.starts_with('/')) return command(line);
      if (line.find_first_not_of(" \t\r") != std::string::npos) answer(line);
    } catch (const JinjaError& error) {
      if (!interactive_) throw;
      say(fmt::format("pronghorn: {}\n", error.what()));
    } catch (const UsageError& error) {
      if (!interactive_) throw;
      say(fmt::format("pronghorn: {}\n", error.what()));
    }
  }

  void command(const std::string& line) {
    const size_t space = std::min(line.find(' '), line.size());
    const std::string name = line.substr(1, space - 1);
    const size_t begin = std::min(line.find_first_not_of(' ', space), line.size());
    const std::string rest = line.substr(begin);
    if (name == "help") {
      say(kHelp);
    } else if (name == "exit" || name == "quit") {
      done_ = true;
    } else if (name == "reset") {
      conversation_.reset();
    } else if (name == "system") {
      conversation_.set_system(rest);
    } else if (name == "stats") {
      say(stats());
    } else if (name == "regenerate") {
      ++regenerated_;
      if (generate_.sampling.temperature == 0) {
        say("(at temperature 0 every answer is the same; --temperature 0.7 varies them)\n");
      }
      write([&](const GenerateOptions& options, const auto& emit, const auto& interrupted) {
        return conversation_.regenerate(options, emit, interrupted,
                                        speculation_ ? &*speculation_ : nullptr);
      });
    } else if (name == "save" || name == "load") {
      if (rest.empty()) throw UsageError("/" + name, "needs the name of a file");
      file(name == "save", rest);
    } else {
      throw UsageError("/" + name.substr(0, 40), "there is no such command",
                       "/help lists them; //TEXT is a message that begins with a slash");
    }
  }

  void file(bool save, const std::string& path) {
    try {
      save ? conversation_.save(path) : conversation_.load(path);
      if (interactive_) say(fmt::format("{} messages\n", conversation_.messages().size()));
    } catch (const Error& error) {
      if (!interactive_) throw;
      say(fmt::format("pronghorn: {}\n", error.what()));  // the conversation goes on
    }
  }

  void answer(const std::string& message) {
    regenerated_ = 0;
    write([&](const GenerateOptions& options, const auto& emit, const auto& interrupted) {
      return conversation_.answer(message, options, emit, interrupted,
                                  speculation_ ? &*speculation_ : nullptr);
    });
  }

  // Writes the answer that `give` gives, as it comes.
  template <typename Give>
  void write(const Give& give) {
    GenerateOptions options = generate_;
    options.sampling.seed += static_cast<uint64_t>(regenerated_);
    std::exception_ptr failure;
    const std::function<void(std::string_view)> emit = [&](std::string_view text) {
      if (options_.json || failure != nullptr) return;
      try {
        write_output(text);
      } catch (...) {
        failure = std::current_exception();
      }
    };
    last_ =
        give(options, emit,
             std::function<bool()>([&] { return failure != nullptr || interrupt_wanted.load(); }));
    answered_ = true;
    if (failure == nullptr && !options_.json) emit("\n");
    if (failure != nullptr) {
      if (!options_.session.empty()) conversation_.save(options_.session);
      saved_ = options_.session;
      std::rethrow_exception(failure);
    }
    if (options_.json) {
      answers_.push_back({{"text", last_.text},
                          {"ids", last_.ids},
                          {"end", end_name(last_.end)},
                          {"prompt_tokens", last_.prompt_tokens},
                          {"tokens", last_.tokens}});
    }
    if (last_.end == Generated::End::length && interactive_) {
      say(fmt::format("(ended after {} tokens; -n allows more)\n", last_.tokens));
    }
    if (interactive_ || options_.stats) say(stats());
    first_ = false;
  }

  std::string stats() const {
    std::string text;
    if (answered_) {
      text = fmt::format("[{} tokens at {}/s; prompt {} at {}/s{}; ", last_.tokens,
                         format_count(per_second(last_.tokens, last_.decode_seconds)),
                         last_.prompt_tokens,
                         format_count(per_second(last_.prompt_tokens, last_.prompt_seconds)),
                         first_ ? ", weights packed meanwhile" : "");
    } else {
      text = "[";
    }
    const Session& session = conversation_.session();
    return text + fmt::format("context {} tokens, state {}]\n", session.length(),
                              format_bytes(static_cast<double>(session.state().bytes())));
  }

  void print_document() const {
    print_json({{"messages", nlohmann::json(conversation_.messages())},
                {"answers", answers_},
                {"tokens", conversation_.tokens()},
                {"context", conversation_.session().length()},
                {"state_bytes", conversation_.session().state().bytes()},
                {"precision", name_of(generate_.precision)}});
  }

  const WritingOptions& options_;
  TextModel loaded_;
  Conversation conversation_;
  GenerateOptions generate_;
  std::optional<Speculation> speculation_;
  bool interactive_, done_ = false, answered_ = false, first_ = true;
  LineInput lines_;
  std::filesystem::path saved_;
  int64_t regenerated_ = 0;
  Generated last_;
  nlohmann::json answers_ = nlohmann::json::array();
};

void run(const WritingOptions& options) {
  check_sampling(options.generate.sampling);
  check_drafters(options.draft);
  Chat(options).run();
}

}  // namespace

void add_chat(CLI::App& app) {
  CLI::App* command = app.add_subcommand("chat", "Talk with an instruction-tuned model");
  auto options = std::make_shared<WritingOptions>();
  options->generate.max_tokens = 1024;
  add_writing_options(*command, *options);
  command->add_option("--system", options->system, "system message");
  command->add_option("-n,--tokens", options->generate.max_tokens, "most tokens of one answer")
      ->transform(positive_integer());
  command->add_option("--session", options->session,
                      "file to continue from, if it exists, and to save to at the end");
  command->add_flag("--stats", options->stats,
                    "speed and state after each answer, off a terminal too");
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
