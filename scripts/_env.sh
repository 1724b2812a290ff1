# Sourced by the other scripts: makes .venv with what they need, once, and puts it first on PATH.
#
#   . scripts/_env.sh; need engine dev
#
# Everything is pinned in constraints.txt.  The environment is made again when that file, pyproject.toml or the
# Python version changes.  PYTHON names the interpreter to use, HEADRACE_VENV another place for the environment.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${HEADRACE_VENV:-$root/.venv}

say() { printf '%s\n' "$*" >&2; }

need() {
    local extras python stamp have
    extras=$(IFS=,; echo "$*")
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        for candidate in python3 python3.13 python3.12 python3.11; do
            if command -v "$candidate" >/dev/null &&
                "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                python=$candidate
                break
            fi
        done
    fi
    if [ -z "$python" ]; then
        say "headrace needs Python 3.11 or newer; set PYTHON to one (python3 here: $(python3 --version 2>&1))"
        exit 3
    fi
    stamp=$( (cat "$root/pyproject.toml" "$root/constraints.txt"; "$python" --version; echo "$root $extras") | sha256sum | cut -d' ' -f1)
    have=$(cat "$venv/headrace-$extras" 2>/dev/null || true)
    if [ "$stamp" != "$have" ]; then
        say "installing headrace[$extras] into ${venv#"$root"/} (the first time takes a few minutes) ..."
        if ! [ -x "$venv/bin/python" ] && ! "$python" -m venv "$venv"; then
            say "could not make a virtual environment with $python (on Debian and Ubuntu: apt install python3-venv)"
            exit 3
        fi
        if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" \
            --editable "$root[$extras]" 2> >(grep -v '^WARNING: Location' >&2); then
            say "installation failed; the lines above say why (is a package index reachable?)"
            exit 3
        fi
        echo "$stamp" >"$venv/headrace-$extras"
    fi
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV=$venv PYTHONNOUSERSITE=1
}
