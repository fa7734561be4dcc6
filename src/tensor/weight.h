// Weight: a matrix of parameters in the encoding that it is stored in, and the packed copies that
// the kernels of a backend want of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/files.h"
#include "tensor/encoding.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Numbers as they are stored.
struct Stored {
  const Encoding* encoding = nullptr;
  std::span<const std::byte> bytes;  // rows of whole blocks, without gaps
  std::shared_ptr<const void> owner;
  // The file that the bytes are a mapped part of (`owner` may then be null), or null: they are
  // memory of this process.
  std::shared_ptr<const MappedFile> file;
};

// Numbers in memory of this process.
Stored stored_f32(std::vector<float> numbers);

// Bytes that a weight takes.
struct WeightBytes {
  std::string what;  // "stored bf16", "packed f32"
  int64_t bytes = 0;
  bool mapped = false;  // pages of a file, in memory only while they are used
};

struct LowRank;

// What a backend keeps of a weight. Only the backend that made it knows more.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual std::vector<WeightBytes> bytes() const = 0;
};

// A weight is either trainable, an f32 tensor with a gradient, or read only: stored bytes in some
// encoding, which a backend may replace by a packed copy that holds the same numbers. Copies of a
// Weight are handles to the same. What changes one (assign, freeze, release_stored) may not run
// while another thread reads it; backends serialise their own accesses.
class Weight {
 public:
  Weight() = default;
  // Trainable. value: [out, in], f32, contiguous.
  explicit Weight(Tensor value);
  // Read only, without numbers until assign().
  Weight(int64_t out, int64_t in);

  bool defined() const { return body_ != nullptr; }
  int64_t out() const { return body_->out; }
  int64_t in() const { return body_->in; }
  int64_t size() const { return out() * in(); }

  // The f32 tensor that is trained; undefined if the weight is read only.
  const Tensor& trainable() const { return body_->trainable; }

  // Gives a read-only weight its numbers. Throws Error if the bytes are not `out` rows of `in`
  // numbers in whole blocks, or the weight is trainable.
  void assign(Stored stored) const;

  // Makes a trainable weight read only; its tensor is then the stored bytes.
  void freeze() const;

  // f32 before assign().
  const Encoding& encoding() const { return *body_->stored.encoding; }
  // The numbers as they are stored; of a trainable weight, those of its tensor. Without bytes once
  // only a packed copy is left.
  const Stored& stored() const { return body_->stored; }

  // Gives back what the stored bytes take: pages of a file, which are read again where they are
  // needed, or, if a packed copy holds the same numbers, memory.
  void release_stored(bool packed_has_all) const;

  // A change that is added to the results of products with the weight; null: none. It is no part of
  // the weight's numbers: rows that are read, and what is stored, come without it.
  const std::shared_ptr<const LowRank>& adapter() const { return body_->adapter; }
  // Throws Error unless its widths are the weight's.
  void adapt(std::shared_ptr<const LowRank> adapter) const;

  // Counts changes of the numbers; packed copies compare it.
  uint64_t version() const {
    return trainable().defined() ? trainable().version() : body_->version;
  }

  // A slot where the backend keeps what it packed.
  std::shared_ptr<PackedWeight>& packed() const { return body_->packed; }

  // All that it takes now, stored and packed. Gradients are not counted.
  std::vector<WeightBytes> bytes() const;

 private:
  struct Body {
    int64_t out = 0, in = 0;
    Tensor trainable;
    Stored stored;
    uint64_t version = 0;
    std::shared_ptr<PackedWeight> packed;
    std::shared_ptr<const LowRank> adapter;
  };
  std::shared_ptr<Body> body_;
};

// A change of low rank to a weight (LoRA, arXiv 2106.09685): x W^T + scale (x A^T) B^T.
struct LowRank {
  Weight a, b;  // [rank, in], [out, rank]
  float scale = 1;
};

}  // namespace pronghorn
