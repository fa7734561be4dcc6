#include "tensor/tensor.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "tensor/memory.h"
#include "tensor/pool.h"

namespace pronghorn {

// What all views of one tensor share.
struct Tensor::Node {
  std::shared_ptr<Storage> storage;
  Shape shape;
  DType dtype = DType::f32;
  bool requires_grad = false;
  uint64_t version = 0;
  Tensor grad;
};

namespace {

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    require(extent >= 0, "tensor", "negative extent in shape {}", shape);
    require(extent == 0 || count <= std::numeric_limits<int64_t>::max() / 8 / extent, "tensor",
            "shape {} is too large", shape);
    count *= extent;
  }
  return count;
}

}  // namespace

Tensor Tensor::empty(Shape shape, DType dtype) {
  const int64_t count = element_count(shape);
  Tensor tensor;
  tensor.node_ = make_pooled<Node>();
  tensor.node_->storage =
      make_storage(static_cast<size_t>(std::max<int64_t>(1, count) * dtype_size(dtype)));
  tensor.node_->shape = shape;
  tensor.node_->dtype = dtype;
  tensor.shape_ = std::move(shape);
  tensor.row_stride_ = tensor.columns();
  return tensor;
}

Tensor Tensor::zeros(Shape shape, DType dtype) {
  Tensor tensor = empty(std::move(shape), dtype);
  memory().clear(tensor.node_->storage->data(), static_cast<size_t>(tensor.bytes()));
  return tensor;
}

Tensor Tensor::full(Shape shape, float value) {
  Tensor tensor = empty(std::move(shape));
  tensor.fill(value);
  return tensor;
}

Tensor Tensor::from(std::span<const float> values, Shape shape) {
  Tensor tensor = empty(std::move(shape));
  tensor.write(values);
  return tensor;
}

DType Tensor::dtype() const {
  require(defined(), "tensor", "used while undefined");
  return node_->dtype;
}

int64_t Tensor::dim(int index) const {
  const int rank = static_cast<int>(shape_.size());
  const int wrapped = index < 0 ? index + rank : index;
  require(wrapped >= 0 && wrapped < rank, "tensor", "no dimension {} in shape {}", index, shape_);
  return shape_[static_cast<size_t>(wrapped)];
}

int64_t Tensor::size() const {
  return std::accumulate(shape_.begin(), shape_.end(), int64_t{1}, std::multiplies<>());
}

template <typename T>
T* Tensor::typed(DType expected) const {
  require(defined(), "tensor", "used while undefined");
  require(node_->dtype == expected, "tensor", "holds {}, used as {}", dtype_name(node_->dtype),
          dtype_name(expected));
  return reinterpret_cast<T*>(node_->storage->data()) + offset_;
}
template float* Tensor::typed<float>(DType) const;
template bf16_t* Tensor::typed<bf16_t>(DType) const;
template int32_t* Tensor::typed<int32_t>(DType) const;

std::span<float> Tensor::values() const {
  require(contiguous(), "tensor", "values() of a strided view {}", shape_);
  return {data(), static_cast<size_t>(size())};
}

Tensor Tensor::column_slice(int64_t begin, int64_t count) const {
  require(begin >= 0 && count >= 0 && begin + count <= columns(), "tensor",
          "columns {}..{} of shape {}", begin, begin + count, shape_);
  Tensor view = *this;
  view.shape_ = {rows(), count};
  view.offset_ += begin;
  return view;
}

Tensor Tensor::row_slice(int64_t begin, int64_t count) const {
  require(begin >= 0 && count >= 0 && begin + count <= rows(), "tensor", "rows {}..{} of shape {}",
          begin, begin + count, shape_);
  Tensor view = *this;
  view.shape_ = {count, columns()};
  view.offset_ += begin * row_stride_;
  return view;
}

Tensor Tensor::reshape(Shape shape) const {
  require(contiguous() && element_count(shape) == size(), "tensor", "cannot see shape {} as {}",
          shape_, shape);
  Tensor view = *this;
  view.shape_ = std::move(shape);
  view.row_stride_ = view.columns();
  return view;
}

Tensor Tensor::detach() const {
  require(defined(), "tensor", "used while undefined");
  Tensor view = *this;
  view.node_ = make_pooled<Node>();
  view.node_->storage = node_->storage;
  view.node_->shape = node_->shape;
  view.node_->dtype = node_->dtype;
  return view;
}

Tensor Tensor::clone() const {
  Tensor copy = empty(shape_, dtype());
  copy.copy_from(*this);
  return copy;
}

void Tensor::copy_from(const Tensor& other) const {
  require(shape_ == other.shape_ && dtype() == other.dtype(), "tensor", "copy of {} {} to {} {}",
          dtype_name(other.dtype()), other.shape_, dtype_name(dtype()), shape_);
  const int64_t element = dtype_size(dtype());
  std::byte* to = node_->storage->data() + offset_ * element;
  const std::byte* from = other.node_->storage->data() + other.offset_ * element;
  memory().copy(from, other.row_stride_ * element, to, row_stride_ * element, rows(),
                columns() * element);
}

PooledVector<float> Tensor::read() const {
  PooledVector<float> values(static_cast<size_t>(size()));
  const auto width = static_cast<size_t>(columns());
  if (contiguous()) {
    memory().read(data(), values.data(), values.size() * sizeof(float));
  } else {
    for (int64_t i = 0; i < rows(); ++i) {
      memory().read(row(i), values.data() + static_cast<size_t>(i) * width, width * sizeof(float));
    }
  }
  return values;
}

void Tensor::write(std::span<const float> values) const {
  require(static_cast<int64_t>(values.size()) == size(), "tensor", "{} values for shape {}",
          values.size(), shape_);
  const auto width = static_cast<size_t>(columns());
  if (contiguous()) {
    memory().write(values.data(), data(), values.size_bytes());
  } else {
    for (int64_t i = 0; i < rows(); ++i) {
      memory().write(values.data() + static_cast<size_t>(i) * width, row(i), width * sizeof(float));
    }
  }
}

void Tensor::fill(float value) const {
  memory().fill({data(), row_stride_}, rows(), columns(), value);
}

bool Tensor::requires_grad() const { return defined() && node_->requires_grad; }

const Tensor& Tensor::set_requires_grad(bool required) const {
  require(defined(), "tensor", "used while undefined");
  node_->requires_grad = required;
  return *this;
}

bool Tensor::covers_base() const {
  return offset_ == 0 && contiguous() && size() == element_count(node_->shape);
}

bool Tensor::has_grad() const { return defined() && node_->grad.defined(); }

Tensor Tensor::grad() const {
  require(has_grad(), "tensor", "has no gradient");
  Tensor view = node_->grad;
  view.shape_ = shape_;
  view.offset_ = offset_;
  view.row_stride_ = row_stride_;
  return view;
}

GradTarget Tensor::grad_target() const {
  require(requires_grad(), "tensor", "a gradient for a tensor that requires none");
  Tensor& gradient = node_->grad;
  bool accumulate = true;
  if (!gradient.defined()) {
    accumulate = !covers_base();
    gradient = accumulate ? zeros(node_->shape) : empty(node_->shape);
  } else if (gradient.node_->storage.use_count() > 1) {
    gradient = gradient.clone();  // given to another tensor too: copy before writing
  }
  return {grad(), accumulate};
}

void Tensor::give_grad(const Tensor& g) const {
  require(g.shape_ == shape_, "tensor", "gradient of shape {} for shape {}", g.shape_, shape_);
  if (!node_->grad.defined() && covers_base() && g.covers_base()) {
    Tensor gradient = g.detach();
    gradient.node_->shape = node_->shape;
    gradient.shape_ = node_->shape;
    gradient.row_stride_ = gradient.columns();
    node_->grad = gradient;
    return;
  }
  const GradTarget target = grad_target();
  if (!target.accumulate) {
    target.tensor.copy_from(g);
    return;
  }
  memory().add({g.data(), g.row_stride_}, {target.tensor.data(), target.tensor.row_stride_}, rows(),
               columns());
}

void Tensor::clear_grad() const {
  if (defined()) node_->grad = Tensor();
}

uint64_t Tensor::version() const { return defined() ? node_->version : 0; }

void Tensor::bump_version() const {
  require(defined(), "tensor", "used while undefined");
  ++node_->version;
}

}  // namespace pronghorn
