// What llama.cpp does with a GGUF file, to compare with: run with its library, built from the
// source in the PyPI package llama-cpp-python.
//
//   g++ -std=c++17 -O2 -I LLAMA/include -I LLAMA/ggml/include scripts/llama_reference.cpp
//       -o llama_reference -L LLAMA/build/bin -lllama -lggml -lggml-base -Wl,-rpath,LLAMA/build/bin
//   ./llama_reference greedy MODEL THREADS PROMPTS COUNT      one prompt a line, one JSON object a
//   line
//   ./llama_reference perplexity MODEL THREADS TEXT WINDOW    as pronghorn eval --window WINDOW
//   ./llama_reference speed MODEL THREADS PROMPT GENERATE
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "llama.h"

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Session {
 public:
  Session(const char* path, int threads) {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    model_ = llama_model_load_from_file(path, llama_model_default_params());
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 4096;
    params.n_batch = 2048;
    params.n_threads = params.n_threads_batch = threads;
    context_ = llama_init_from_model(model_, params);
    vocabulary_ = llama_model_get_vocab(model_);
  }

  int vocab_size() const { return llama_vocab_n_tokens(vocabulary_); }

  std::vector<llama_token> tokens(const std::string& text) const {
    std::vector<llama_token> tokens(text.size() + 8);
    tokens.resize(static_cast<size_t>(llama_tokenize(vocabulary_, text.data(),
                                                     static_cast<int>(text.size()), tokens.data(),
                                                     static_cast<int>(tokens.size()), true, true)));
    return tokens;
  }

  void start() {
    llama_memory_clear(llama_get_memory(context_), true);
    length_ = 0;
  }

  void read(const llama_token* tokens, int count, bool all_scores) {
    llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; ++i) {
      batch.token[i] = tokens[i];
      batch.pos[i] = length_++;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = all_scores || i == count - 1;
    }
    if (llama_decode(context_, batch) != 0) std::exit(1);
    llama_batch_free(batch);
  }

  const float* scores(int row) { return llama_get_logits_ith(context_, row); }
  void wait() { llama_synchronize(context_); }

 private:
  llama_model* model_;
  llama_context* context_;
  const llama_vocab* vocabulary_;
  int length_ = 0;
};

void greedy(Session& session, const char* prompts, int count) {
  std::ifstream file(prompts);
  std::string line;
  while (std::getline(file, line)) {
    session.start();
    const std::vector<llama_token> prompt = session.tokens(line);
    session.read(prompt.data(), static_cast<int>(prompt.size()), false);
    std::printf("{\"prompt\": [");
    for (size_t i = 0; i < prompt.size(); ++i) std::printf("%s%d", i > 0 ? ", " : "", prompt[i]);
    std::printf("], \"tokens\": [");
    std::string leads;  // of the likeliest token over the next
    for (int k = 0; k < count; ++k) {
      const float* scores = session.scores(-1);
      const int size = session.vocab_size();
      const llama_token best =
          static_cast<llama_token>(std::max_element(scores, scores + size) - scores);
      float second = -1e30f;
      for (int i = 0; i < size; ++i) {
        if (i != best) second = std::max(second, scores[i]);
      }
      std::printf("%s%d", k > 0 ? ", " : "", best);
      char lead[32];
      std::snprintf(lead, sizeof(lead), "%s%.4f", k > 0 ? ", " : "",
                    static_cast<double>(scores[best] - second));
      leads += lead;
      session.read(&best, 1, false);
    }
    std::printf("], \"leads\": [%s]}\n", leads.c_str());
  }
}

void perplexity(Session& session, const char* path, int window) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::vector<llama_token> tokens = session.tokens(text);
  double sum = 0;
  long predicted = 0;
  for (size_t begin = 0; begin + 1 < tokens.size(); begin += static_cast<size_t>(window)) {
    const int count = static_cast<int>(std::min<size_t>(window, tokens.size() - 1 - begin));
    session.start();
    session.read(tokens.data() + begin, count, true);
    for (int i = 0; i < count; ++i) {
      const float* scores = session.scores(i);
      const int size = session.vocab_size();
      const float most = *std::max_element(scores, scores + size);
      double total = 0;
      for (int v = 0; v < size; ++v) total += std::exp(static_cast<double>(scores[v] - most));
      sum += std::log(total) + static_cast<double>(most - scores[tokens[begin + i + 1]]);
      ++predicted;
    }
  }
  std::printf("{\"tokens\": %ld, \"nll\": %.4f, \"perplexity\": %.6f}\n", predicted, sum,
              std::exp(sum / static_cast<double>(predicted)));
}

void speed(Session& session, int prompt, int generate) {
  std::vector<llama_token> tokens;
  for (int i = 0; i < std::max(prompt, generate); ++i) tokens.push_back(100 + i * 7919 % 40000);
  double read = 1e9, wrote = 1e9;
  for (int run = 0; run < 5; ++run) {
    session.start();
    double begin = now();
    session.read(tokens.data(), prompt, false);
    session.wait();
    read = std::min(read, now() - begin);
    session.start();
    begin = now();
    for (int i = 0; i < generate; ++i) session.read(&tokens[static_cast<size_t>(i)], 1, false);
    session.wait();
    wrote = std::min(wrote, now() - begin);
  }
  std::printf("{\"prompt_tokens_per_second\": %.1f, \"decode_tokens_per_second\": %.1f}\n",
              prompt / read, generate / wrote);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: llama_reference greedy|perplexity|speed MODEL THREADS A B\n");
    return 2;
  }
  const std::string mode = argv[1];
  Session session(argv[2], std::atoi(argv[3]));
  if (mode == "greedy") greedy(session, argv[4], std::atoi(argv[5]));
  if (mode == "perplexity") perplexity(session, argv[4], std::atoi(argv[5]));
  if (mode == "speed") speed(session, std::atoi(argv[4]), std::atoi(argv[5]));
  return 0;
}
