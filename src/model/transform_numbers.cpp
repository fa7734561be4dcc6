// Transforms that change numbers.
#include <cmath>
#include <utility>

#include "model/transform_parts.h"

namespace pronghorn::transforms {
namespace {

Transform each_tensor(std::function<StoredTensor(const StoredTensor&)> forward,
                      std::function<StoredTensor(const StoredTensor&)> inverse) {
  const auto all = [](const auto& one, const StoredTensors& from) {
    StoredTensors to;
    for (const StoredTensor& tensor : from) to.push_back(one(tensor));
    return to;
  };
  return Transform({[](const Shapes& ours, size_t) { return ours; },
                    [=, forward = std::move(forward)](const StoredTensors& from, const Shapes&) {
                      return all(forward, from);
                    },
                    [=, inverse = std::move(inverse)](const StoredTensors& from, const Shapes&) {
                      return all(inverse, from);
                    }});
}

}  // namespace

Transform plus(float value) {
  return each_tensor(
      [=](const StoredTensor& from) {
        return mapped_f32(from, [=](float number) { return number + value; });
      },
      [=](const StoredTensor& from) {
        return mapped_f32(from, [=](float number) { return number - value; });
      });
}

Transform log_of_negated() {
  // In double and then rounded: of all f32, the result is the nearest.
  return each_tensor(
      [](const StoredTensor& from) {
        return mapped_f32(from, [](float number) {
          require(number <= 0 && std::isfinite(number), kTransformWhere,
                  "{} is not the negative of an exponential", number);
          return static_cast<float>(std::log(-static_cast<double>(number)));
        });
      },
      [](const StoredTensor& from) {
        return mapped_f32(from, [](float number) {
          return static_cast<float>(-std::exp(static_cast<double>(number)));
        });
      });
}

Transform unscale(const std::vector<double>& factors) {
  const auto scaled = [factors](const StoredTensor& from, bool inverse) {
    const auto rows = from.shape.empty() ? int64_t{1} : from.shape.front();
    require(factors.size() == 1 || std::ssize(factors) == rows, kTransformWhere,
            "{} factors for the rows of {}", factors.size(), text(from.shape));
    const int64_t row = elements(from.shape) / std::max<int64_t>(1, rows);
    int64_t i = 0;
    return mapped_f32(from, [&](float number) {
      const double factor = factors[factors.size() == 1 ? 0 : static_cast<size_t>(i++ / row)];
      return static_cast<float>(inverse ? number * factor : number / factor);
    });
  };
  return each_tensor([scaled](const StoredTensor& from) { return scaled(from, false); },
                     [scaled](const StoredTensor& from) { return scaled(from, true); });
}

}  // namespace pronghorn::transforms
