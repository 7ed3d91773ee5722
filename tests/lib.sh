# What tests/run and .ci/run share: the cache folder, Debian packages, Rust tools. Sourced, not run.

export OCTAVIUS_CACHE="${OCTAVIUS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/octavius}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$OCTAVIUS_CACHE/target}"
export PATH="$OCTAVIUS_CACHE/tools/bin:$PATH"
mkdir -p "$OCTAVIUS_CACHE"

step() { printf '\n== %s\n' "$*"; }

# Debian packages that the build and the tests need; installed where they are missing and we may.
have_packages() {
  local missing=() package
  for package in gcc git cmake pkg-config curl jq zsh fish mandoc; do
    dpkg -s "$package" >/dev/null 2>&1 || command -v "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  [ "${#missing[@]}" -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages, install them as root: apt-get install ${missing[*]}" >&2
    exit 2
  fi
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The distribution's etcd, as OCTAVIUS_TEST_ETCD. Its package is taken apart and not installed: installing it may start an etcd of the machine's own.
have_etcd() {
  export OCTAVIUS_TEST_ETCD
  OCTAVIUS_TEST_ETCD=$(command -v etcd) && return
  OCTAVIUS_TEST_ETCD=$OCTAVIUS_CACHE/tools/etcd/usr/bin/etcd
  [ -x "$OCTAVIUS_TEST_ETCD" ] && return
  local folder
  folder=$(mktemp -d)
  mkdir -p "$OCTAVIUS_CACHE/tools/etcd"
  [ "$(id -u)" -ne 0 ] || apt-get update -qq
  if ! (cd "$folder" && apt-get download -qq etcd-server 2>/dev/null && dpkg -x etcd-server_*.deb "$OCTAVIUS_CACHE/tools/etcd"); then
    echo "no etcd: put one on the path; on Debian its package is etcd-server" >&2
    exit 2
  fi
  rm -rf "$folder"
}

# A Rust tool by its name and a version that is known to work; built once, without the long optimisation, and kept in the cache. More arguments
# go to `cargo install`.
have_tool() {
  local name=$1 version=$2
  shift 2
  command -v "$name" >/dev/null 2>&1 && return
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_TARGET_DIR="$OCTAVIUS_CACHE/tools-target" \
    cargo install "$name" --version "^$version" --locked --quiet --root "$OCTAVIUS_CACHE/tools" "$@"
}

# An S3 server of another house, as OCTAVIUS_TEST_S3: s3s-fs (Apache-2.0), which keeps each object as a file. Later versions need a newer Rust.
have_s3() {
  export OCTAVIUS_TEST_S3
  command -v s3s-fs >/dev/null 2>&1 || step "Building an S3 server, once: minutes" >&2
  have_tool s3s-fs 0.14 --features binary
  OCTAVIUS_TEST_S3=$(command -v s3s-fs)
}

# The program of tests/cluster: etcd 3.6 and the parts of a Kubernetes. Built once for each state of its sources, which takes minutes, and
# kept in the cache. Sets OCTAVIUS_CLUSTER_BIN, and OCTAVIUS_ETCD_36 to a program that is etcd 3.6, which Debian does not have.
have_cluster_program() {
  command -v go >/dev/null || { echo "no Go: tests/cluster cannot be built" >&2; return 1; }
  local bin=$OCTAVIUS_CACHE/tools/bin version flags key
  # What it says of itself, clients believe: Helm installs nothing into a cluster that says it is older than a chart asks for.
  version=$(sed -nE 's/^\tk8s.io\/kubernetes (v[0-9.]+)$/\1/p' tests/cluster/go.mod)
  flags="-s -w -X k8s.io/component-base/version.gitVersion=$version"
  key=$({ cat tests/cluster/{go.mod,go.sum,main.go} && echo "$flags"; } | sha256sum | cut -c1-16)
  export OCTAVIUS_CLUSTER_BIN=$bin/cluster-$key
  if [ ! -x "$OCTAVIUS_CLUSTER_BIN" ]; then
    step "Building tests/cluster, once: minutes" >&2
    mkdir -p "$bin"
    find "$bin" \( -name 'cluster-*' -o -name 'etcd-3.6-*' \) -mtime +7 -delete # a younger one may be another run's
    nice -n 10 go build -C tests/cluster -buildvcs=false -trimpath -ldflags="$flags" -o "$OCTAVIUS_CLUSTER_BIN.$$" . || return 1
    mv "$OCTAVIUS_CLUSTER_BIN.$$" "$OCTAVIUS_CLUSTER_BIN" || return 1
  fi
  # Of the same modules, which are compiled by now.
  export OCTAVIUS_ETCD_36=$bin/etcd-3.6-server-$key
  if [ ! -x "$OCTAVIUS_ETCD_36" ]; then
    nice -n 10 go build -C tests/cluster -buildvcs=false -trimpath -ldflags='-s -w' -o "$OCTAVIUS_ETCD_36.$$" go.etcd.io/etcd/server/v3 || return 1
    mv "$OCTAVIUS_ETCD_36.$$" "$OCTAVIUS_ETCD_36" || return 1
  fi
}

# Helm, as OCTAVIUS_TEST_HELM, built from its module and kept in the cache: the charts are checked, rendered and installed with it. It takes
# itself for as old as its sources say unless it is told which Kubernetes it was built for.
have_helm() {
  local version=v3.22.0 bin=$OCTAVIUS_CACHE/tools/bin versions=helm.sh/helm/v3/pkg
  export OCTAVIUS_TEST_HELM=$bin/helm-$version
  [ ! -x "$OCTAVIUS_TEST_HELM" ] || return 0
  step "Building Helm, once: minutes" >&2
  mkdir -p "$bin"
  GOBIN=$bin/helm.$$ nice -n 10 go install -trimpath \
    -ldflags="-s -w -X $versions/chartutil.k8sVersionMajor=1 -X $versions/chartutil.k8sVersionMinor=34 -X $versions/lint/rules.k8sVersionMajor=1 -X $versions/lint/rules.k8sVersionMinor=34" \
    "helm.sh/helm/v3/cmd/helm@$version" && mv "$bin/helm.$$/helm" "$OCTAVIUS_TEST_HELM" && rmdir "$bin/helm.$$"
}

# Whether a real Kubernetes can be started here; installs its packages where they are missing. Says what stands against it.
have_cluster() {
  if [ "$(uname -s)" != Linux ] || [ "$(id -u)" -ne 0 ]; then
    echo "not root on Linux: tests/cluster cannot start a Kubernetes" >&2
    return 1
  fi
  if ! unshare --mount --pid --fork true 2>/dev/null; then
    echo "no right to make namespaces (CAP_SYS_ADMIN): tests/cluster cannot start a Kubernetes" >&2
    return 1
  fi
  # By program and not by package: a machine may have them from elsewhere, and Debian's would displace those.
  local missing=() pair
  for pair in containerd runc curl openssl ip:iproute2 /usr/lib/cni/ptp:containernetworking-plugins /bin/busybox:busybox-static \
    systemd-analyze:systemd; do
    command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  if [ "${#missing[@]}" -ne 0 ]; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } || return 1
  fi
}

# Debian's Chromium and what drives it, as OCTAVIUS_TEST_CHROMIUM and OCTAVIUS_TEST_CHROMEDRIVER; and axe-core, which looks for what keeps people
# from using a page, as OCTAVIUS_TEST_AXE: one file of an npm package, kept in the cache. Says what stands against it.
have_browser() {
  local missing=() pair
  for pair in chromium:chromium chromedriver:chromium-driver; do
    command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  if [ "${#missing[@]}" -ne 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
      echo "no browser, install it as root: apt-get install ${missing[*]}" >&2
      return 1
    fi
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } || return 1
  fi
  export OCTAVIUS_TEST_CHROMIUM OCTAVIUS_TEST_CHROMEDRIVER
  OCTAVIUS_TEST_CHROMIUM=$(command -v chromium) && OCTAVIUS_TEST_CHROMEDRIVER=$(command -v chromedriver) || return 1

  # The digest is npm's own, in hexadecimal.
  local version=4.14.1 digest=1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5 folder
  export OCTAVIUS_TEST_AXE=$OCTAVIUS_CACHE/tools/axe-core-$version/axe.min.js
  [ ! -f "$OCTAVIUS_TEST_AXE" ] || return 0
  folder=$(mktemp -d "$OCTAVIUS_CACHE/axe-XXXXXX") || return 1
  if ! (cd "$folder" && timeout 180 npm pack --silent "axe-core@$version" >/dev/null &&
    echo "$digest  axe-core-$version.tgz" | sha512sum --check --quiet && tar -xzf "axe-core-$version.tgz" package/axe.min.js package/LICENSE); then
    echo "no axe-core $version: npm is missing, or could not fetch it as it was published" >&2
    rm -rf "$folder"
    return 1
  fi
  mkdir -p "${OCTAVIUS_TEST_AXE%/*}" && mv "$folder"/package/* "${OCTAVIUS_TEST_AXE%/*}/" && rm -rf "$folder"
}
