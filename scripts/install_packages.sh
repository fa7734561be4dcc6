#!/bin/sh
# Installs the Debian 12 packages that Pronghorn needs. Does nothing, and needs no rights, when they
# are all there.
#
#   scripts/install_packages.sh [build] [test] [demo] [develop] [fuzz] [fonts] [speech] [mpi]     (default: build)
set -eu

# A compiler, the build tools and the libraries: see README.md for what each is for.
build_packages="g++ cmake ninja-build pkg-config
  libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev zlib1g-dev
  libhwy-dev libsentencepiece-dev libonig-dev libutf8proc-dev libxxhash-dev libpng-dev libsndfile1-dev libsamplerate0-dev
  libedit-dev libcpp-httplib-dev libjs-chart.js"
test_packages="libgtest-dev libgmock-dev"
# A text of four megabytes that needs no download of its own.
demo_packages="bible-kjv bible-kjv-text"
develop_packages="ccache clang-format clang-tidy libbenchmark-dev"
fuzz_packages="clang-14 libclang-rt-14-dev"
# Of scripts/make_font_images.py: fonts of which none is drawn after another.
font_packages="python3-pil fonts-dejavu-extra fonts-liberation fonts-lato fonts-open-sans
  fonts-roboto-unhinted fonts-cantarell fonts-crosextra-carlito fonts-crosextra-caladea
  fonts-linuxlibertine fonts-inconsolata fonts-ebgaramond fonts-urw-base35 fonts-quicksand
  fonts-comfortaa fonts-firacode fonts-junction fonts-lmodern"
# Of scripts/make_spoken_words.py.
speech_packages="espeak-ng python3-numpy"
# Several processes or machines; iproute2 for scripts/check_ranks.py.
mpi_packages="libopenmpi-dev openmpi-bin iproute2"

[ $# -gt 0 ] || set -- build
wanted=""
for group in "$@"; do
  case "$group" in
    build) wanted="$wanted $build_packages" ;;
    test) wanted="$wanted $test_packages" ;;
    demo) wanted="$wanted $demo_packages" ;;
    develop) wanted="$wanted $develop_packages" ;;
    fuzz) wanted="$wanted $fuzz_packages" ;;
    fonts) wanted="$wanted $font_packages" ;;
    speech) wanted="$wanted $speech_packages" ;;
    mpi) wanted="$wanted $mpi_packages" ;;
    *)
      echo "install_packages.sh: unknown group '$group' (choose from build, test, demo, develop, fuzz, fonts, speech, mpi)" >&2
      exit 2
      ;;
  esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install_packages.sh: not a Debian system; these packages' counterparts must be there:" \
    $wanted >&2
  exit 0
fi

missing=""
for package in $wanted; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install_packages.sh: packages are missing, and there is no sudo; run as root:" \
      "apt-get install$missing" >&2
    exit 1
  fi
  as_root=sudo
fi

echo "Installing$missing" >&2
# A run that another package manager holds up waits for it.
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq"
$apt update
$apt install -y --no-install-recommends $missing >&2
