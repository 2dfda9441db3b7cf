# Sourced, not run. Debian packages into a folder of our own: needs no root, installs nothing, changes nothing of the
# machine's apt. The mirror is the one the machine uses; suites are named by the caller, so that the outcome does not
# depend on the machine's own release.

# fetch_packages FOLDER "SUITE ..." TARGET PACKAGE...
# Unpacks the packages and all they depend on, as if nothing were installed, into FOLDER/x. TARGET: the suite that is
# preferred. A package written =NAME is taken alone, without what it depends on.
fetch_packages() {
  local folder=$1 suites=$2 target=$3 suite name mirror apt closure=() alone=()
  shift 3
  for name in "$@"; do
    case $name in =*) alone+=("${name#=}") ;; *) closure+=("$name") ;; esac
  done
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
  # without any lists yet apt knows no origins: then by the name that every Debian mirror's main archive has
  [ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/$' || :)
  [ -n "$mirror" ] || { echo "apt on this machine has no Debian mirror" >&2; return 1; }
  mkdir -p "$folder"/{lists/partial,cache/archives/partial,x}
  : >"$folder/status"
  : >"$folder/log"
  for suite in $suites; do
    echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
  done >"$folder/sources.list"
  cat >"$folder/apt.conf" <<EOF
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferencesparts "-";
Dir::State "$folder";
Dir::State::lists "$folder/lists";
Dir::State::status "$folder/status";
Dir::Cache "$folder/cache";
Dir::Log "$folder";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Default-Release "$target";
APT::Install-Recommends "0";
APT::Sandbox::User "root";
APT::Update::Post-Invoke "";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Debug::NoLocking "1";
EOF
  apt=(env "APT_CONFIG=$folder/apt.conf" DEBIAN_FRONTEND=noninteractive)
  {
    "${apt[@]}" apt-get update -q &&
      "${apt[@]}" apt-get install -q -y --download-only "${closure[@]}" &&
      (cd "$folder/cache/archives" && for name in "${alone[@]}"; do "${apt[@]}" apt-get download -q "$(resolve_package "$name")"; done)
  } >"$folder/log" 2>&1 || { cat "$folder/log" >&2; return 1; }
  for name in "$folder"/cache/archives/*.deb; do dpkg -x "$name" "$folder/x"; done
}

# A package without files of its own, like linux-image-cloud-amd64, stands for the one it depends on.
resolve_package() {
  local real
  real=$("${apt[@]}" apt-cache depends "$1" | awk '/^  Depends: linux-image-/ { print $2; exit }')
  echo "${real:-$1}"
}

# content_stamp FILE-OR-FOLDER...: changes with the content, the names and the modes of what is given.
content_stamp() {
  find "$@" -type f -printf '%m %p\n' -exec sha256sum {} \; | LC_ALL=C sort | sha256sum | cut -d' ' -f1
}
