#!/usr/bin/env bash
# An ARM64 Python with our runtimes in a folder, for benchmarks/aarch64.py: needs no ARM machine and no root.
#
#     apt-get install qemu-user-static g++-aarch64-linux-gnu cmake ninja-build      (Debian, once)
#     benchmarks/aarch64.sh FOLDER
#
# Debian's arm64 packages are unpacked, not installed, and the wheels are those that pip gives a board. llama.cpp has no
# such wheel: the one of llama-cpp-python's sources is cross-compiled for ARMv8.2 with dot products (Raspberry Pi 5, RK3588),
# 78 files, about 5 minutes on 2 idle cores. Where there is no cross-compiler, GGUF is left out.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
llama=$(sed -n 's/^LLAMA := //p' "$repository/Makefile")

if [ ! -e "$folder/rootfs/usr/bin/python3" ]; then
  mkdir -p "$folder"/{lists/partial,archives/partial,rootfs}
  : > "$folder/status"
  cat > "$folder/apt.conf" << CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
Dir::State::Lists "$folder/lists";
Dir::State::status "$folder/status";
Dir::Cache "$folder";
CONF
  export APT_CONFIG="$folder/apt.conf"
  apt-get update -qq
  apt-get install -y -qq --download-only --no-install-recommends -o Debug::NoLocking=1 python3 libstdc++6 zlib1g
  for package in "$folder"/archives/*.deb; do dpkg -x "$package" "$folder/rootfs"; done
  # ONNX Runtime looks there for the processor's parts, and dies of an x86's: two cores of a Raspberry Pi 5.
  mkdir -p "$folder/rootfs/proc"
  for core in 0 1; do
    printf 'processor\t: %s\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\n' "$core" \
      "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    printf 'CPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
  done > "$folder/rootfs/proc/cpuinfo"
fi
minor=$(ls "$folder/rootfs/usr/bin" | sed -n 's/^python3\.\([0-9]*\)$/\1/p')

wheels=("--target" "$folder/site" "--upgrade" "--only-binary=:all:" "--python-version" "3.$minor" "--implementation" "cp"
  "--platform" "manylinux_2_28_aarch64" "--platform" "manylinux_2_27_aarch64" "--platform" "manylinux2014_aarch64")
$python - "$repository" > "$folder/requirements.txt" << 'LIST'
import sys, tomllib
project = tomllib.load(open(f"{sys.argv[1]}/pyproject.toml", "rb"))["project"]
needed = project["dependencies"] + project["optional-dependencies"]["device"]
print("\n".join(line for line in needed if not line.startswith("llama")))
print("jinja2\ndiskcache\ntyping-extensions")  # llama-cpp-python's own
LIST
$python -m pip install -q --disable-pip-version-check -c "$repository/requirements.lock" "${wheels[@]}" \
  -r "$folder/requirements.txt"

command -v aarch64-linux-gnu-g++ > /dev/null || { echo "no aarch64-linux-gnu-g++: without GGUF"; exit 0; }
if [ ! -d "$folder/llama" ]; then
  $python -m pip download -q --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d "$folder" "$llama"
  mkdir "$folder/llama.tmp" && tar xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder/llama.tmp" --strip-components=1
  mv "$folder/llama.tmp" "$folder/llama"
fi
cmake -S "$folder/llama/vendor/llama.cpp" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod -DGGML_OPENMP=OFF \
  -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
  -DLLAMA_BUILD_SERVER=OFF > "$folder/cmake.log"
ninja -C "$folder/build" llama
rm -rf "$folder/site/llama_cpp" && cp -r "$folder/llama/llama_cpp" "$folder/site/"
mkdir -p "$folder/site/llama_cpp/lib" && cp -P "$folder"/build/bin/*.so* "$folder/site/llama_cpp/lib/"
