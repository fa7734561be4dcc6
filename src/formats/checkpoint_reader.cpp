#include "formats/checkpoint_reader.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/quote.h"
#include "formats/json.h"
#include "formats/pickle.h"
#include "formats/scaled_tensors.h"
#include "formats/split_files.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMaxIndex = uint64_t{1} << 28;
constexpr const char* kFiles[] = {"model.safetensors", "model.safetensors.index.json",
                                  "pytorch_model.bin", "pytorch_model.bin.index.json"};

std::string in_small_letters(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

std::optional<std::filesystem::path> find_weights(const std::filesystem::path& directory) {
  for (const char* name : kFiles) {
    if (std::filesystem::exists(directory / name)) return directory / name;
  }
  std::map<std::string, std::filesystem::path> others;
  std::error_code code;
  for (const auto& item : std::filesystem::directory_iterator(directory, code)) {
    others.emplace(in_small_letters(item.path().filename().string()), item.path());
  }
  for (const char* name : kFiles) {
    if (const auto found = others.find(name); found != others.end()) return found->second;
  }
  return {};
}

bool is_torch_model(const std::filesystem::path& path) {
  std::error_code code;
  return ends_in(path, ".pth") && std::filesystem::is_regular_file(path, code);
}

CheckpointReader::CheckpointReader(const std::filesystem::path& directory) : directory_(directory) {
  if (is_torch_model(directory)) {
    entries_ = read(directory);
    return;
  }
  const std::optional<std::filesystem::path> file = find_weights(directory);
  if (!file) {
    if (std::filesystem::exists(directory / "adapter_config.json")) {
      throw Error(directory.string(), "holds an adapter, not a whole model",
                  "name its model, and this with --adapter");
    }
    throw Error(directory.string(),
                "no model.safetensors, no pytorch_model.bin and no index of either",
                "name the directory of a checkpoint");
  }
  if (ends_in(*file, ".json")) {
    read_shards(*file);
  } else {
    entries_ = read(*file);
  }
  unite_scaled_tensors(entries_, directory);
}

CheckpointReader::Entries CheckpointReader::read(const std::filesystem::path& file) {
  if (!ends_in(file, ".safetensors")) {
    return TorchFile(file).entries();
  }
  Entries entries;
  const SafetensorsFile opened(file);
  for (const std::string& name : opened.names()) entries[name] = *opened.find(name);
  return entries;
}

void CheckpointReader::read_shards(const std::filesystem::path& index) {
  const nlohmann::json parsed = parse_json(read_file(index, kMaxIndex), index.string());
  require(parsed.is_object() && parsed.contains("weight_map") && parsed["weight_map"].is_object(),
          index.string(), "no weight_map");
  std::set<std::filesystem::path> files;
  for (const auto& item : parsed["weight_map"].items()) {
    const std::string where = fmt::format("{}: tensor {}", index.string(), quote(item.key()));
    require(item.value().is_string(), where, "its file must be a string");
    const auto& name = item.value().get_ref<const std::string&>();
    require(!name.empty() && name != "." && name != ".." &&
                name.find_first_of(std::string_view("/\\\0", 3)) == name.npos,
            where, "file {} must be a plain name inside the directory", quote(name));
    files.insert(directory_ / name);
  }
  require(!files.empty(), index.string(), "an empty weight_map");
  require_parts(std::vector<std::filesystem::path>(files.begin(), files.end()));
  std::map<std::string, Entries> shards;
  for (const auto& file : files) shards[file.filename().string()] = read(file);
  for (const auto& item : parsed["weight_map"].items()) {
    const auto& name = item.value().get_ref<const std::string&>();
    const auto entry = shards[name].find(item.key());
    if (entry == shards[name].end()) {
      absent_[item.key()] = name;
    } else {
      entries_[item.key()] = entry->second;
    }
  }
  for (auto& shard : shards) entries_.merge(shard.second);
}

std::vector<std::string> CheckpointReader::names() const {
  std::vector<std::string> names;
  for (const auto& item : entries_) names.push_back(item.first);
  return names;
}

const SafetensorsEntry* CheckpointReader::find(std::string_view name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second;
}

const SafetensorsEntry& CheckpointReader::at(std::string_view name) const {
  if (const SafetensorsEntry* entry = find(name)) return *entry;
  if (const auto absent = absent_.find(name); absent != absent_.end()) {
    throw Error(directory_.string(),
                fmt::format("no tensor {} in the file {} that the index names", quote(name),
                            quote(absent->second)),
                "download that file again");
  }
  const std::string near = nearest_name(name, names());
  throw Error(directory_.string(), fmt::format("no tensor {}", quote(name)),
              near.empty() ? "" : fmt::format("the nearest name is {}", quote(near)));
}

}  // namespace pronghorn
