#include "decode/text_model.h"

#include "base/error.h"
#include "formats/checkpoint_reader.h"
#include "formats/gguf.h"
#include "model/config.h"
#include "model/lora.h"
#include "tensor/storage.h"

namespace pronghorn {

int64_t weight_file_bytes(const std::filesystem::path& checkpoint) {
  int64_t bytes = 0;
  if (const auto gguf = find_gguf(checkpoint)) {
    for (const GgufTensor& tensor : GgufFile(*gguf).tensors()) {
      bytes += static_cast<int64_t>(tensor.bytes.size());
    }
    return bytes;
  }
  const CheckpointReader reader(checkpoint);
  for (const std::string& name : reader.names()) {
    bytes += static_cast<int64_t>(reader.at(name).bytes.size());
  }
  return bytes;
}

std::unique_ptr<Model> load_model(const std::filesystem::path& checkpoint,
                                  const std::filesystem::path& adapter) {
  std::unique_ptr<Model> loaded = Model::load(checkpoint);
  if (!adapter.empty()) loaded->set_adapter(Adapter::load(*loaded, adapter));
  return loaded;
}

TextModel load_text_model(const std::filesystem::path& checkpoint,
                          const std::filesystem::path& adapter) {
  // First: such a model has no tokenizer either.
  std::error_code none;
  if (std::filesystem::exists(checkpoint / "config.json", none)) {
    require_reads_texts(load_config(checkpoint), checkpoint.string());
  }
  TextModel loaded;
  loaded.tokenizer = load_tokenizer(checkpoint);
  loaded.format = ChatFormat::load(checkpoint);
  loaded.model = load_model(checkpoint, adapter);
  require(loaded.tokenizer->vocab_size() <= loaded.model->config().vocab_size, checkpoint.string(),
          "its tokenizer has {} tokens and its model {}", loaded.tokenizer->vocab_size(),
          loaded.model->config().vocab_size);
  // Reading a tokenizer takes twice the memory that it needs.
  release_cached_memory();
  return loaded;
}

}  // namespace pronghorn
