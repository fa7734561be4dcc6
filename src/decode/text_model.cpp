#include "decode/text_model.h"

#include "base/error.h"
#include "model/lora.h"

namespace pronghorn {

std::unique_ptr<Model> load_model(const std::filesystem::path& checkpoint,
                                  const std::filesystem::path& adapter) {
  std::unique_ptr<Model> loaded = Model::load(checkpoint);
  if (!adapter.empty()) loaded->set_adapter(Adapter::load(*loaded, adapter));
  return loaded;
}

TextModel load_text_model(const std::filesystem::path& checkpoint,
                          const std::filesystem::path& adapter) {
  TextModel loaded;
  loaded.tokenizer = load_tokenizer(checkpoint);
  loaded.format = ChatFormat::load(checkpoint);
  loaded.model = load_model(checkpoint, adapter);
  require(loaded.tokenizer->vocab_size() <= loaded.model->config().vocab_size, checkpoint.string(),
          "its tokenizer has {} tokens and its model {}", loaded.tokenizer->vocab_size(),
          loaded.model->config().vocab_size);
  return loaded;
}

}  // namespace pronghorn
