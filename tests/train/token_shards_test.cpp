// Text sources and token shards: what is read, how it is split, and what bad data say.
#include "train/token_shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>

#include "base/error.h"
#include "base/threads.h"
#include "support/errors.h"
#include "support/folder.h"
#include "train/text_source.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;

std::string gzip(std::string_view text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(text.size() + 1000, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

class TextTest : public testing::Test {
 protected:
  TextTest() { fs::create_directories(folder_ / "in/sub"); }

  fs::path put(const std::string& name, std::string_view bytes) {
    write_file(folder_ / "in" / name, bytes);
    return folder_ / "in" / name;
  }

  static std::vector<std::string> documents(const std::vector<fs::path>& paths) {
    std::vector<std::string> all;
    for_each_document(paths,
                      [&](std::string_view text, const std::string&) { all.emplace_back(text); });
    return all;
  }

  static std::string read_error(const fs::path& path) {
    return error_of([&] { documents({path}); });
  }

  static std::string tokens_as_text(const fs::path& path) {
    const TokenShard shard(path);
    std::vector<int32_t> ids(static_cast<size_t>(shard.size()));
    shard.read(0, ids);
    return make_byte_tokenizer()->decode(ids);
  }

  Folder folder_;
};

TEST_F(TextTest, ReadsEveryKindInOrder) {
  put("b.txt", "bee\n");
  put("a.jsonl", "{\"text\": \"one\\n\"}\n\n{\"id\": 3, \"text\": \"\\u00e9\"}\n{\"text\": \"\"}");
  put("sub/c.txt.gz", gzip("first") + gzip(" second"));
  put("sub/d.jsonl.gz", gzip("{\"text\": \"x\"}\r\n{\"text\": \"y\"}"));
  put("sub/e", "\xEF\xBB\xBF marked");
  put(".hidden", "no");
  put("empty.txt", "");
  EXPECT_THAT(documents({folder_ / "in"}),
              ElementsAre("one\n", "\xC3\xA9", "bee\n", "first second", "x", "y", " marked"));
  EXPECT_THAT(documents({folder_ / "in/sub/e", folder_ / "in/b.txt"}),
              ElementsAre(" marked", "bee\n"));
  // More than one piece of the decompressor, and lines across pieces.
  std::string lines;
  for (int i = 0; i < 40000; ++i) lines += fmt::format("{{\"text\": \"document {}\"}}\n", i);
  const auto many = documents({put("many.jsonl.gz", gzip(lines))});
  ASSERT_EQ(many.size(), 40000u);
  EXPECT_EQ(many.back(), "document 39999");
  EXPECT_THAT(read_documents({folder_ / "in/a.jsonl"}, 5), ElementsAre("one\n"));
}

TEST_F(TextTest, BadDataSaysWhatAndWhere) {
  EXPECT_THAT(read_error(folder_ / "none.txt"), HasSubstr("no such file"));
  EXPECT_THAT(read_error(put("e.txt", "")), HasSubstr("empty"));
  EXPECT_THAT(read_error(folder_ / "in/sub"), HasSubstr("no text"));
  EXPECT_THAT(read_error(put("z.txt", std::string("ab\0c", 4))), HasSubstr("zero byte at byte 2"));
  EXPECT_THAT(read_error(put("u.txt", "abcd\xC3(")), HasSubstr("invalid UTF-8 at byte 4"));
  EXPECT_THAT(read_error(put("l.jsonl", "{\"text\": \"a\"}\n{\"text\": ")), HasSubstr("line 2"));
  EXPECT_THAT(read_error(put("n.jsonl", "{\"text\": \"a\"}\n\n{\"body\": 1}\n")),
              AllOf(HasSubstr("line 3"), HasSubstr("\"text\"")));
  EXPECT_THAT(read_error(put("a.jsonl", "[1]")), HasSubstr("line 1"));
  EXPECT_THAT(read_error(put("w.jsonl", "\n \n")), HasSubstr("no text"));
  std::string text;
  for (int i = 0; i < 5000; ++i) text += fmt::format("line {}\n", i * 7919);
  const std::string good = gzip(text);
  EXPECT_THAT(read_error(put("p.txt.gz", text)), HasSubstr("broken gzip"));
  for (const size_t length : {size_t{1}, size_t{9}, good.size() / 2, good.size() - 1}) {
    EXPECT_THAT(read_error(put("t.txt.gz", good.substr(0, length))), HasSubstr("cut off"))
        << length;
  }
  std::string flipped = good;
  flipped[good.size() / 2] ^= 0x10;
  EXPECT_THAT(read_error(put("f.txt.gz", flipped)), HasSubstr("gzip"));
  EXPECT_THAT(read_error(put("g.txt.gz", good + "junk")), HasSubstr("broken gzip"));
}

TEST_F(TextTest, GzipOfSeveralMembersAndZerosBehindThem) {
  const std::string zeros(1000, '\0');
  const std::vector<std::string> good = {
      gzip("one ") + gzip("two"), gzip("one two") + zeros, gzip("one ") + zeros + gzip("two"),
      gzip("one two") + gzip("") + zeros, gzip("") + gzip("one two")};
  for (const std::string& bytes : good) {
    EXPECT_THAT(documents({put("members.txt.gz", bytes)}), ElementsAre("one two"));
  }
  const std::string line = "{\"text\": \"one two\"}\n";
  EXPECT_THAT(
      documents({put("members.jsonl.gz", gzip(line.substr(0, 5)) + gzip(line.substr(5)) + zeros)}),
      ElementsAre("one two"));
  EXPECT_THAT(read_error(put("g.txt.gz", gzip("one") + zeros + "x")), HasSubstr("gzip"));
  EXPECT_THAT(read_error(put("h.txt.gz", gzip("one") + zeros + gzip("two").substr(0, 5))),
              HasSubstr("cut off"));
}

TEST_F(TextTest, EndingsMayBeInCapitals) {
  const std::string line = "{\"text\": \"one\"}\n";
  EXPECT_THAT(documents({put("a.TXT.GZ", gzip("one"))}), ElementsAre("one"));
  EXPECT_THAT(documents({put("b.JSONL", line)}), ElementsAre("one"));
  EXPECT_THAT(documents({put("c.Jsonl.Gz", gzip(line))}), ElementsAre("one"));
}

TEST_F(TextTest, HashesGoByWhatFilesHold) {
  const fs::path a = put("a.txt", "the same size"), b = put("b.txt", "the sama size");
  const uint64_t hash = hash_of_texts({a});
  EXPECT_NE(hash, hash_of_texts({b}));
  EXPECT_EQ(hash, hash_of_texts({put("sub/moved.txt", "the same size")}));
  EXPECT_NE(hash, hash_of_texts({put("a.jsonl", "the same size")}));  // is read otherwise
  EXPECT_NE(hash_of_texts({a, b}), hash_of_texts({b, a}));
  // Where one file ends and the next begins counts.
  EXPECT_NE(hash_of_texts({put("c.txt", "ab"), put("d.txt", "c")}),
            hash_of_texts({put("e.txt", "a"), put("f.txt", "bc")}));
}

TEST_F(TextTest, HoldsOutTheEndOfAFewDocuments) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += fmt::format("line number {}\n", i);
  const auto path = put("t.txt", text);
  const auto out = folder_ / "out";
  const auto tokenizer = make_byte_tokenizer();
  const auto made = prepare_tokens({path}, *tokenizer, out);
  EXPECT_FALSE(made.reused);
  const std::string train = tokens_as_text(made.train), held = tokens_as_text(made.held_out);
  EXPECT_EQ(train + held, text);
  EXPECT_EQ(train.back(), '\n');
  EXPECT_NEAR(static_cast<double>(held.size()), 0.05 * static_cast<double>(text.size()), 20);
  EXPECT_EQ(read_file(made.held_out_text), held);
  EXPECT_EQ(TokenShard(made.held_out).text_bytes(), static_cast<int64_t>(held.size()));
  EXPECT_EQ(made.train_bytes + made.held_out_bytes, static_cast<int64_t>(text.size()));

  // Reused as they are, until something changes or is damaged.
  const auto again = prepare_tokens({path}, *tokenizer, out);
  EXPECT_TRUE(again.reused);
  EXPECT_EQ(again.train_tokens, made.train_tokens);
  EXPECT_FALSE(prepare_tokens({path}, *tokenizer, out, 0.1).reused);
  EXPECT_TRUE(prepare_tokens({path}, *tokenizer, out, 0.1).reused);
  write_file(made.held_out, "damaged");
  EXPECT_FALSE(prepare_tokens({path}, *tokenizer, out, 0.1).reused);
  put("t.txt", text + "more\n");
  EXPECT_FALSE(prepare_tokens({path}, *tokenizer, out, 0.1).reused);
}

// Numbered lines of one kind; the newline counts.
std::string lines_of(const std::string& kind, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += fmt::format("{} {:06}\n", kind, i);
  return text;
}

TEST_F(TextTest, HoldsOutTheEndOfEachOfSeveralTexts) {
  const std::string prose = lines_of("prose", 20000), code = lines_of("codes", 5000);
  const std::vector<fs::path> paths = {put("a.txt", prose), put("b.txt", code)};
  const auto tokenizer = make_byte_tokenizer();
  const auto made = prepare_tokens(paths, *tokenizer, folder_ / "out");
  // 5% of each, whole lines.
  const std::string held = prose.substr(19000 * 13) + code.substr(4750 * 13);
  EXPECT_EQ(tokens_as_text(made.held_out), held);
  EXPECT_EQ(read_file(made.held_out_text), held);
  EXPECT_EQ(tokens_as_text(made.train), prose.substr(0, 19000 * 13) + code.substr(0, 4750 * 13));
  // In the other order each gives the same.
  const auto turned = prepare_tokens({paths[1], paths[0]}, *tokenizer, folder_ / "turned");
  EXPECT_EQ(tokens_as_text(turned.held_out), code.substr(4750 * 13) + prose.substr(19000 * 13));
}

TEST_F(TextTest, ShortTextsLeaveTheirShareToTheNext) {
  // 5% of the first is 6 bytes, less than an eighth of all that is held out: the second gives them.
  // A part is cut before the line that its first byte is in. The last text always gives its own.
  const std::string one = lines_of("aaaaa", 10), two = lines_of("bbbbb", 2000);
  const std::string three = lines_of("ccccc", 100);
  const auto made = prepare_tokens({put("1.txt", one), put("2.txt", two), put("3.txt", three)},
                                   *make_byte_tokenizer(), folder_ / "out");
  EXPECT_EQ(tokens_as_text(made.held_out), two.substr(1899 * 13) + three.substr(95 * 13));
  EXPECT_EQ(tokens_as_text(made.train), one + two.substr(0, 1899 * 13) + three.substr(0, 95 * 13));
}

TEST_F(TextTest, LongLinesDoNotMakeOneTextGiveForAll) {
  // The only end of a line is near the beginning: the cut is between characters instead, since a
  // part may become twice as long, no more.
  const std::string one = "title\n" + std::string(40000, 'x'), two = lines_of("lines", 3000);
  const auto made = prepare_tokens({put("1.txt", one), put("2.txt", two)}, *make_byte_tokenizer(),
                                   folder_ / "out");
  const std::string held = tokens_as_text(made.held_out);
  EXPECT_EQ(held, std::string(2001, 'x') + two.substr(2850 * 13));
}

TEST_F(TextTest, HoldsOutWholeDocumentsOfMany) {
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += fmt::format("{{\"text\": \"<{}>\"}}\n", i);
  const auto path = put("d.jsonl", lines);
  const auto tokenizer = make_byte_tokenizer();
  const auto made = prepare_tokens({path}, *tokenizer, folder_ / "a");
  // Of 200 documents 5% are ten, each the last of its twenty.
  EXPECT_EQ(tokens_as_text(made.held_out), "<19><39><59><79><99><119><139><159><179><199>");
  const int threads = thread_count();
  set_thread_count(threads == 1 ? 4 : 1);
  const auto other = prepare_tokens({path}, *tokenizer, folder_ / "b");
  set_thread_count(threads);
  EXPECT_EQ(read_file(made.train), read_file(other.train));
}

TEST_F(TextTest, SeparatesDocumentsByEos) {
  const auto tokenizer =
      load_tokenizer(fs::path(PRONGHORN_SOURCE_DIR) / "tests/formats/golden/llama3");
  // The text of a special token in the data is text.
  const auto path = put("d.jsonl", "{\"text\": \"a</s>\"}\n{\"text\": \"bb bb bb bb bb\\n b\"}\n");
  const auto made = prepare_tokens({path}, *tokenizer, folder_ / "out", 0.08);
  const TokenShard train(made.train);
  std::vector<int32_t> ids(static_cast<size_t>(train.size()));
  train.read(0, ids);
  EXPECT_EQ(tokenizer->decode(ids, true), "<s>a</s></s><s>bb bb bb bb bb\n");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *tokenizer->eos()), 1);
  EXPECT_EQ(train.text_bytes(), 5 + 15);
  EXPECT_EQ(read_file(made.held_out_text), " b");
}

TEST_F(TextTest, ShardChecksItsFile) {
  const auto path = put("t.txt", std::string(1000, 'x'));
  const auto made = prepare_tokens({path}, *make_byte_tokenizer(), folder_ / "out");
  const TokenShard shard(made.train);
  std::vector<int32_t> ids(10);
  EXPECT_NO_THROW(shard.read(shard.size() - 10, ids));
  EXPECT_THROW(shard.read(shard.size() - 9, ids), Error);
  EXPECT_THROW(shard.read(-1, ids), Error);
  EXPECT_THROW(shard.read(INT64_MAX - 3, ids), Error);
  const std::string good = read_file(made.train);
  for (const size_t length : {size_t{0}, size_t{47}, good.size() - 1, good.size() / 2}) {
    write_file(folder_ / "cut", good.substr(0, length));
    EXPECT_THROW(TokenShard{folder_ / "cut"}, Error);
  }
  write_file(folder_ / "short", good.substr(2));
  EXPECT_THROW(TokenShard{folder_ / "short"}, Error);
  std::string outside = good;
  outside[1] = 1;  // id 376 in a vocabulary of 256
  write_file(folder_ / "outside", outside);
  EXPECT_THAT(error_of([&] { TokenShard(folder_ / "outside").read(0, ids); }), HasSubstr("id 376"));
  EXPECT_THROW(prepare_tokens({put("tiny.txt", "x")}, *make_byte_tokenizer(), folder_ / "tiny"),
               Error);
  EXPECT_FALSE(fs::exists(folder_ / "tiny/train.tokens"));
}

TEST_F(TextTest, GzipBitsPerByte) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += fmt::format("line {}\n", i * 7919);
  const auto path = put("t.txt", text);
  // The same library in one call.
  const double expected =
      8.0 * static_cast<double>(gzip(text).size()) / static_cast<double>(text.size());
  EXPECT_DOUBLE_EQ(gzip_bits_per_byte(path), expected);
  EXPECT_THROW(gzip_bits_per_byte(put("empty", "")), Error);
}

}  // namespace
}  // namespace pronghorn
