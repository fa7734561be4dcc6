// Log-mel spectrograms: sound as frames of numbers, in the definition of Whisper and librosa.
#pragma once

#include <complex>
#include <cstdint>
#include <span>
#include <vector>

namespace pronghorn {

struct LogMelOptions {
  int64_t sample_rate = 16000;  // Hz
  int64_t window = 400;         // samples of a frame; also the size of its Fourier transform
  int64_t hop = 160;            // samples from one frame to the next
  int64_t mels = 80;            // bands
  // Numbers further below the loudest of the sound than that many powers of ten are raised to
  // there; 0: they stay, and a frame does not depend on those after it.
  double range = 8;
};

// Of n samples x: n / hop frames (rounded down), number t around sample t hop, with samples beyond
// the ends mirrored there (x_{-i} = x_i):
//
//   P_k = |sum_i hann_i x_{t hop - window / 2 + i} e^{-2 pi j i k / window}|^2, k <= window / 2
//   s_m = log10(max(sum_k F_mk P_k, 1e-10))
//   out_m = (max(s_m, max over frames and bands of s - range) + 4) / 4
//
// hann is periodic, (1 - cos(2 pi i / window)) / 2. F are triangles whose corners are mels + 2
// frequencies from 0 to sample_rate / 2, evenly spaced on Slaney's mel scale (linear to 1000 Hz,
// logarithmic above), each divided by half of its width in Hz. That is whisper.log_mel_spectrogram
// (arXiv 2212.04356, section 2.2) of a sound that is not padded, with librosa.filters.mel.
class LogMel {
 public:
  // Throws Error for a window whose size has other factors than 2, 3 and 5, and for sizes that are
  // none.
  explicit LogMel(const LogMelOptions& options);

  int64_t frames(int64_t samples) const { return samples / options_.hop; }

  // [frames, mels]. Sums are in float64; the same on any number of threads. Throws Error for fewer
  // samples than window / 2 + 1 or hop, and for more numbers than kMaxLogMel.
  std::vector<float> operator()(std::span<const float> samples) const;

 private:
  struct Band {
    int64_t first = 0;  // frequency of the first weight
    std::vector<double> weights;
  };

  // log10 of the bands of frame t, [mels].
  void frame(std::span<const float> samples, int64_t t, float* out) const;

  LogMelOptions options_;
  std::vector<double> hann_;
  std::vector<int64_t> factors_;                 // of the window
  std::vector<std::complex<double>> rotations_;  // e^{-2 pi j i / window}
  std::vector<Band> bands_;
};

constexpr int64_t kMaxLogMel = int64_t{1} << 28;

}  // namespace pronghorn
