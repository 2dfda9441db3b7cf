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
  mkdir -p "$folder"/{lists/partial,preferences.d,cache/archives/partial,x}
  mirror=$(debian_mirror "$folder")
  : >"$folder/status"
  for suite in $suites; do
    echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
  done >"$folder/sources.list"
  cat >"$folder/apt.conf" <<EOF
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "$folder/preferences";
Dir::Etc::preferencesparts "$folder/preferences.d";
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
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Debug::NoLocking "1";
EOF
  apt=(env "APT_CONFIG=$folder/apt.conf" LC_ALL=C)
  apt_logged update
  apt_logged install -y --download-only "${closure[@]}"
  for name in "${alone[@]}"; do
    (cd "$folder/cache/archives" && apt_logged download "$(resolve_package "$name")")
  done
  for name in "$folder"/cache/archives/*.deb; do dpkg -x "$name" "$folder/x"; done
}

# The mirror of Debian's main archive that this machine's apt uses. apt knows what an archive is only by its lists: where
# there are none yet, they are fetched into FOLDER.
debian_mirror() {
  local own=(-o "Dir::State::lists=$1/lists" -o "Dir::Cache=$1/cache" -o APT::Sandbox::User=root -o Debug::NoLocking=1)
  local ask=(indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian') found
  found=$(apt-get "${ask[@]}" | sed -n 1p)
  if [ -z "$found" ]; then
    apt-get "${own[@]}" -qq update >&2
    found=$(apt-get "${own[@]}" "${ask[@]}" | sed -n 1p)
  fi
  [ -n "$found" ] || { echo "apt on this machine has no mirror of Debian" >&2; return 1; }
  echo "$found"
}

# The two below are parts of fetch_packages and use its variables.
apt_logged() {
  "${apt[@]}" apt-get -q "$@" >"$folder/log" 2>&1 || { cat "$folder/log" >&2; return 1; }
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
