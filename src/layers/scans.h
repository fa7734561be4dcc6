// Scans: passes over the rows of each segment in several orders, so that mixers that see earlier
// rows only see all of an image or of a text together.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "layers/layer.h"

namespace pronghorn {

// One pass: along the rows of a grid or along its columns, from the first or from the last.
struct ScanPass {
  std::string_view name;  // of its weights, and before names of what is carried along it
  bool columns = false;   // of the batch's two coordinates, the second decides, then the first
  bool backward = false;
};

// The passes of a scan, the first in the order of the rows themselves: one of raster, two of both,
// four of cross (the cross-scan of VMamba, arXiv 2401.10166, section 4.2). Of none: none.
std::span<const ScanPass> scan_passes(Scan scan);

// The rows of a batch in the order of a pass. Where they are read block by block (Mask::blocks and
// two_copies) a pass from the first row sees the blocks before a row's own as well, and one from
// the last row each block by itself. Of two copies, each block with noise goes on from the blocks
// without it that come before (Segment::after).
class ScannedRows {
 public:
  // Throws Error for segments with a state that are not read block by block, and for a pass along
  // columns where rows do not have two coordinates.
  ScannedRows(const CheckedBatch& batch, const ScanPass& pass);

  // What a mixer is given that sees earlier rows only. Coordinates go along with their rows;
  // positions count the rows of a segment in the order of the pass, or of a block from 0 on where
  // it is read by itself.
  const CheckedBatch& batch() const { return batch_; }
  // x [rows, columns] in that order, and what came of it back in the order of the batch.
  Tensor enter(const Context& context, const Tensor& x) const;
  Tensor leave(const Context& context, const Tensor& y) const;

 private:
  std::vector<int32_t> rows_, places_;  // empty: as they are
  CheckedBatch batch_;
};

// A mixer that sees all of each segment, of mixers that see earlier rows: the sum over the passes
// of a scan of leave(mixer(enter(x))). mixers: one for each pass, or one for all. What layers carry
// goes along in each pass. The first mixer has a state in a model that reads blocks; in others it
// has none, and the forward throws Error for a segment with one. None of the mixers may lend or
// borrow keys.
std::unique_ptr<Mixer> scanned(Scan scan, std::vector<std::unique_ptr<Mixer>> mixers);

}  // namespace pronghorn
