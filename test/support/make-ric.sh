#!/usr/bin/env bash
# make-ric.sh OUT: AWS's runtime interface client for Node (aws-lambda-ric), which runs handlers in Lambda, into OUT/index.mjs.
# Its own installation builds a curl, a CMake project and node-gyp's tree around three files of C++: minutes. Here the same three
# files are compiled by themselves, against the system's libcurl. Does nothing when OUT was made by the same script.
set -euo pipefail
out=$(mkdir -p "$(dirname "${1:?usage: make-ric.sh OUT}")" && cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")"
. guest/packages.sh

stamp=$(content_stamp make-ric.sh)
[ "$(cat "$out/stamp" 2>/dev/null || :)" != "$stamp" ] || exit 0
echo "building aws-lambda-ric" >&2
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

npm pack --silent aws-lambda-ric@4.0.2 node-addon-api@8.9.2 node-api-headers@1.9.0 >/dev/null
sha512sum --check --quiet <<'SUMS'
144e55b24c7b998367a809d65895d43ac2e9d951a076c26c0a844b1536bc2f8624d1056d02ba91f2ae7cc8f03ef900b56bbdd95895c1436007df59c802fecd39  aws-lambda-ric-4.0.2.tgz
5628cb5db8b750008debd2342555c9b17e2d8c00a336840382fda04c5eacc76c16122f2d912836797f29e60488162f33dbe0cbde81e663a3b229c7b7f120e896  node-addon-api-8.9.2.tgz
da83482cfe235f0441e32c2760a8d593563227dea7d83e0439524ee92de8619e4fb5b26bc3762df53a40b97de704b32ece7ef8ae77c642bbf5de94bdbc2f9888  node-api-headers-1.9.0.tgz
SUMS
mkdir ric api headers cpp include
tar xzf aws-lambda-ric-*.tgz -C ric --strip-components 1
tar xzf node-addon-api-*.tgz -C api --strip-components 1
tar xzf node-api-headers-*.tgz -C headers --strip-components 1
tar xJf ric/deps/aws-lambda-cpp.tar.xz -C cpp --warning=no-unknown-keyword

# named by the addon, which takes nothing from them: so it is built by Node-API alone, for every Node
touch include/{node,uv,v8}.h
# what CMake would fill in
version=$(sed -n 's/^ *VERSION \([0-9]*\.[0-9]*\.[0-9]*\)$/\1/p' cpp/CMakeLists.txt)
IFS=. read -r major minor patch <<<"$version"
sed "s/@PROJECT_VERSION@/$version/; s/@PROJECT_VERSION_MAJOR@/$major/; s/@PROJECT_VERSION_MINOR@/$minor/
  s/@PROJECT_VERSION_PATCH@/$patch/" cpp/src/version.cpp.in >version.cpp
# without src/backward.cpp, which prints stacks when the addon itself crashes
g++ -std=c++17 -O1 -fPIC -shared -Iinclude -Iapi -Iheaders/include -Icpp/include -o ric/rapid-client.node \
  ric/src/native/rapid-client.cc cpp/src/{runtime,logging}.cpp version.cpp -lcurl -pthread

rm -r ric/deps
echo "$stamp" >ric/stamp
rm -rf "$out"
mv -T ric "$out"
