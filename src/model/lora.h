// Adapters: changes of low rank to the matrices of a model, trained in their place (LoRA, arXiv
// 2106.09685), in files of the layout that the PEFT library reads and writes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "layers/parameters.h"
#include "model/model.h"

namespace pronghorn {

struct LoraConfig {
  int64_t rank = 16;
  double alpha = 0;  // products are multiplied by alpha / rank; 0: alpha = 2 rank
  // Last parts of our names of matrices in blocks, "q_proj"; empty: all matrices of blocks.
  std::vector<std::string> targets;
};

// Matrices A [rank, in] and B [out, rank] for some of a model's: x W^T + scale (x A^T) B^T.
class Adapter {
 public:
  struct Part {
    size_t parameter = 0;  // whose matrix it changes, among the model's
    std::shared_ptr<const LowRank> change;
  };

  // Fresh, to be trained: A uniform within 1/sqrt(in), B zero, so that the model is what it was.
  // Throws Error if no matrix is called as the targets say.
  static std::shared_ptr<Adapter> fresh(const Model& model, const LoraConfig& config,
                                        uint64_t seed);

  // adapter_config.json and adapter_model.safetensors of a directory, whose names are those of the
  // family that the model was read from. Throws Error for kinds of adapters that are not LoRA on
  // matrices, and for what does not fit the model.
  static std::shared_ptr<Adapter> load(const Model& model, const std::filesystem::path& directory,
                                       Purpose purpose = Purpose::inference);

  // The same files. base: what the configuration calls the model that it is for.
  void save(const Model& model, const std::filesystem::path& directory,
            const std::string& base) const;

  const std::vector<Part>& parts() const { return parts_; }
  // A and B of each part in turn.
  const std::vector<Parameter>& parameters() const { return store_.all(); }

 private:
  Adapter(uint64_t seed, bool initialize, Purpose purpose) : store_(seed, initialize, purpose) {}
  // Registers A and B for a matrix of the model.
  void add(const Model& model, size_t parameter, int64_t rank, double scale);

  ParameterStore store_;
  std::vector<Part> parts_;
};

// Adds the changes of the model's adapter to its matrices, which are then without it: in the
// encoding that they had, if that holds single numbers, else in f32.
void merge_adapter(Model& model);

}  // namespace pronghorn
