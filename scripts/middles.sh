#!/usr/bin/env bash
# Makes the proxies and balancers available with which crates/cli/tests/integration/middles.rs tests
# the transports. Installs nothing: uses what is in PATH, and unpacks Debian's packages of the rest
# with the libraries that they need into target/middles/root. Writes target/middles/env, one line
# "NAME PROGRAM" for each, and "libraries DIR:DIR" and "modules DIR:DIR" for the unpacked ones.
# Fails if a program is missing, and names each on standard error.
set -euo pipefail
cd "$(dirname "$0")/.."

# NAME PACKAGES: the program NAME is in one of the packages, separated by commas.
wanted='nginx nginx,libnginx-mod-stream
haproxy haproxy
stunnel stunnel4
squid squid
apache2 apache2-bin
microsocks microsocks,libnss-wrapper
caddy caddy
mitmdump mitmproxy'

middles=${CARGO_TARGET_DIR:-target}/middles
mkdir -p "$middles"
middles=$(cd "$middles" && pwd)
root=$middles/root
version=$(cksum <scripts/middles.sh)
if [[ -f $middles/complete && $(<"$middles/complete") == "$version" ]]; then exit 0; fi
rm -f "$middles/complete"
PATH=$PATH:/usr/sbin:/sbin

# Two need a file more: microsocks has no option for host names, and gets libnss_wrapper.
installed() {
    command -v "$1" >/dev/null || return 1
    case $1 in
        nginx) [[ -e /usr/lib/nginx/modules/ngx_stream_module.so ]] ;;
        microsocks) compgen -G '/usr/lib/*/libnss_wrapper.so' >/dev/null ;;
    esac
}

# Lists and downloads of apt of our own, so that neither root nor a recent `apt-get update` is needed.
apt() {
    apt-get --quiet --quiet -o APT::Sandbox::User= -o Dir::State="$middles/apt" \
        -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$middles/apt" "$@" >&2
}

# Unpacks packages with what they depend on and what is not installed. Perl is only used by scripts
# of these packages that the tests do not run.
unpack() {
    local names
    names=$(apt_names "$@") || return 1
    (
        cd "$middles/debs"
        # shellcheck disable=SC2086 # names without spaces
        apt download $names
    ) || return 1
    for deb in "$middles"/debs/*.deb; do
        dpkg-deb --extract "$deb" "$root" && rm "$deb"
    done
}

# The packages and those that they need and that are not installed.
apt_names() {
    printf '%s\n' "$@"
    apt-get --simulate --no-install-recommends -o Dir::State="$middles/apt" \
        -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$middles/apt" install "$@" |
        sed -n 's/^Inst \([^ ]*\) (.*/\1/p' | sort -u | grep -vxF "$(printf '%s\n' "$@")" |
        grep -vE '^(lib)?perl|^(fonts|libdbi|logrotate)' || true
}

unpacked() {
    local program
    for program in "$root/usr/sbin/$1" "$root/usr/bin/$1"; do
        if [[ -x $program ]]; then
            echo "$program"
            return
        fi
    done
    return 1
}

mkdir -p "$middles/debs" "$middles/apt/lists/partial" "$middles/apt/archives/partial" "$root"
missing=()
updated=
: >"$middles/env.new"
while read -r name packages; do
    if installed "$name"; then
        echo "$name $(command -v "$name")" >>"$middles/env.new"
        continue
    fi
    if ! unpacked "$name" >/dev/null; then
        if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
            missing+=("$name (neither installed nor is there apt-get)")
            continue
        fi
        if [[ -z $updated ]]; then
            updated=yes
            apt update || true
        fi
        # shellcheck disable=SC2086 # one argument a package
        if ! unpack ${packages//,/ } || ! unpacked "$name" >/dev/null; then
            missing+=("$name (package ${packages%%,*})")
            continue
        fi
    fi
    echo "$name $(unpacked "$name")" >>"$middles/env.new"
done <<<"$wanted"

# Unpacked programs that do not start here count as missing.
works() {
    local options=--version
    case $1 in
        nginx | haproxy | squid | apache2) options=-v ;;
        stunnel) options=-version ;;
        caddy) options=version ;;
        microsocks) return 0 ;;
    esac
    LD_LIBRARY_PATH=$libraries PYTHONPATH=$root/usr/lib/python3/dist-packages "$2" $options >/dev/null 2>&1
}

libraries=$(find "$root" -name '*.so*' -path '*/lib/*' -exec dirname {} + | grep -E '/lib/[^/]*-linux-gnu[^/]*$' | sort -u | paste -sd: || true)
while read -r name program; do
    if [[ $program == "$root"/* ]] && ! works "$name" "$program"; then
        missing+=("$name (the unpacked one does not start)")
    else
        echo "$name $program"
    fi
done <"$middles/env.new" >"$middles/env"
rm "$middles/env.new"
wrapper=$(compgen -G "$root/usr/lib/*/libnss_wrapper.so" || compgen -G '/usr/lib/*/libnss_wrapper.so' || true)
if [[ -n $wrapper ]]; then echo "nss_wrapper ${wrapper%%$'\n'*}" >>"$middles/env"; fi
printf 'libraries %s\nroot %s\n' "$libraries" "$root" >>"$middles/env"

if ((${#missing[@]} > 0)); then
    printf 'missing: %s\n' "${missing[*]}" >&2
    exit 2
fi
echo "$version" >"$middles/complete"
