// Text for training and evaluation: files and folders of plain text, JSON lines, and either in
// gzip.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

// One input file.
struct TextFile {
  std::filesystem::path path;
  bool json_lines, gzip;  // by its name: .jsonl, .gz, .jsonl.gz
};

// The files that `paths` name, in order; a folder stands for all files below it, sorted by path,
// without hidden ones. Throws Error for a path that does not exist or a folder without files.
std::vector<TextFile> list_text_files(const std::vector<std::filesystem::path>& paths);

// Changes when what the files hold does, or how they are read; not with their names, places and
// times.
uint64_t hash_of_texts(const std::vector<std::filesystem::path>& paths);

// Calls document(text, where) for every document in turn: a plain file is one document, and so is
// the "text" field of each line of a JSON lines file. Empty documents are omitted, and a byte
// order mark is dropped. The text is valid UTF-8 without zero bytes and lives until the call
// returns; where names the file (and line). Files are mapped or streamed; only one document is held
// at a time. Throws Error for a missing path, an empty file, no text at all, bytes that are not
// text (with their offset), broken gzip (whose members may follow one another, with zeros after),
// and a line that is not an object with a "text" string.
void for_each_document(
    const std::vector<std::filesystem::path>& paths,
    const std::function<void(std::string_view text, const std::string& where)>& document);

// The documents of `paths`, cut off after `limit` bytes (at a character), for training a tokenizer.
std::vector<std::string> read_documents(const std::vector<std::filesystem::path>& paths,
                                        int64_t limit);

// The same, one after the other.
std::string read_text(const std::vector<std::filesystem::path>& paths, int64_t limit);

}  // namespace pronghorn
