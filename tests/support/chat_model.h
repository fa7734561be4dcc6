// A checkpoint for tests of chats: bytes as the vocabulary, special tokens, and a template.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/files.h"
#include "formats/utf8.h"

namespace pronghorn::testing_support {

// The letter that byte-level tokenizers write for a byte: itself if it is printable, or the next
// free one from 256 on.
inline std::string byte_letter(int byte) {
  int next = 256;
  for (int b = 0; b <= byte; ++b) {
    const bool own = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
    if (b == byte) {
      std::string letter;
      append_utf8(static_cast<uint32_t>(own ? b : next), letter);
      return letter;
    }
    if (!own) ++next;
  }
  return {};
}

// Ids 0 to 255 are the bytes, then <|start|>, <|end|> and <|text_end|>: 259 tokens. The template
// writes "<|start|>user\n...<|end|>\n"; tokenizer_config.json names only <|text_end|> as an end.
inline void write_chat_tokenizer(const std::filesystem::path& directory) {
  using nlohmann::json;
  json vocabulary = json::object(), added = json::array();
  for (int byte = 0; byte < 256; ++byte) vocabulary[byte_letter(byte)] = byte;
  for (const char* text : {"<|start|>", "<|end|>", "<|text_end|>"}) {
    added.push_back({{"id", 256 + added.size()},
                     {"content", text},
                     {"special", true},
                     {"normalized", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"single_word", false}});
  }
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"pre_tokenizer", byte_level},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}}}};
  const std::string chat =
      "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}";
  write_file(directory / "tokenizer.json", tokenizer.dump());
  write_file(directory / "tokenizer_config.json",
             json({{"eos_token", "<|text_end|>"}, {"chat_template", chat}}).dump());
}

constexpr int kChatStart = 256, kChatEnd = 257, kChatTextEnd = 258, kChatVocabulary = 259;

}  // namespace pronghorn::testing_support
