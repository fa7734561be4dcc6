// What the pages say of layers is what the layers are: tables of settings, and the layer that
// docs/adding-an-architecture.md prints.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "base/files.h"
#include "layers/fields.h"
#include "layers/layer.h"

namespace pronghorn {
namespace {

const std::filesystem::path kDocs = std::filesystem::path(PRONGHORN_SOURCE_DIR) / "docs";

// The table that one page has for some types: the line before it is <!-- settings: NAME NAME -->.
struct Table {
  std::string page;
  std::vector<std::string> types;
  std::string text;
};

std::vector<Table> tables_of(const std::filesystem::path& page) {
  constexpr std::string_view kMark = "<!-- settings: ", kEnd = " -->";
  std::vector<Table> tables;
  std::istringstream lines(read_file(page));
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(kMark) && line.ends_with(kEnd)) {
      std::istringstream names(line.substr(kMark.size(), line.size() - kMark.size() - kEnd.size()));
      Table& table = tables.emplace_back();
      table.page = page.filename().string();
      for (std::string name; names >> name;) table.types.push_back(name);
      inside = true;
    } else if (inside && line.starts_with("|")) {
      tables.back().text += line + "\n";
    } else if (inside && !tables.back().text.empty()) {
      inside = false;
    }
  }
  return tables;
}

TEST(Documentation, TablesOfSettingsAreThoseOfTheLayers) {
  std::map<std::string, std::vector<FieldDescription>> described;
  for (const MixerType& type : mixer_types()) described[type.name] = describe(type);
  for (const FeedForwardType& type : feed_forward_types()) described[type.name] = describe(type);
  // Those of tests have no page.
  for (const char* name : {"test_shift", "deltanet"}) described.erase(name);
  std::set<std::string> documented;
  for (const auto& entry : std::filesystem::directory_iterator(kDocs / "architectures")) {
    for (const Table& table : tables_of(entry.path())) {
      // Types that share a table have the same row for a setting of the same name.
      std::vector<FieldDescription> rows;
      std::set<std::string> names;
      for (const std::string& type : table.types) {
        ASSERT_TRUE(described.contains(type)) << table.page << " has a table of " << type;
        documented.insert(type);
        for (const FieldDescription& field : described[type]) {
          if (names.insert(field.name).second) rows.push_back(field);
        }
      }
      EXPECT_EQ(table.text, field_table(rows)) << table.page;
      for (const std::string& type : table.types) {
        for (const FieldDescription& field : described[type]) {
          EXPECT_NE(field_table(rows).find(field_table({&field, 1}).substr(field_table({}).size())),
                    std::string::npos)
              << type << "." << field.name << " is not what the other types of its table have";
        }
      }
    }
  }
  for (const auto& [name, fields] : described) {
    EXPECT_TRUE(documented.contains(name))
        << "no page in docs/architectures has a table of " << name;
  }
}

TEST(Documentation, TheLayerThatIsPrintedIsTheOneThatIsTested) {
  const std::string page = read_file(kDocs / "adding-an-architecture.md");
  const std::string layer =
      read_file(std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/model/deltanet.cpp");
  EXPECT_NE(page.find("```cpp\n" + layer + "```\n"), std::string::npos)
      << "docs/adding-an-architecture.md does not print tests/model/deltanet.cpp";
}

}  // namespace
}  // namespace pronghorn
