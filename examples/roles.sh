# What owner, builder and platform do in every example; read by demo.sh and serving/demo.sh.
# Needs CLOISTER, PYTHON and KEY_SERVER in the environment; works in the current directory.
set -eu
export PYTHONDONTWRITEBYTECODE=1
export CLOISTER_PLATFORM=simulated # also where there is better: the owner trusts this one below

step() { printf '==> %-9s %s\n' "$1" "$2"; }

encrypt_inputs() {
    step owner 'make a wrap key and certificates, encrypt the inputs'
    [ -e wrap-key ] || "$CLOISTER" key new wrap-key
    [ -e certs ] || "$CLOISTER" certs new certs
    rm -rf encrypted
    "$CLOISTER" encrypt -k wrap-key plaintext encrypted
}

build() { # NAME [-D NAME=VALUE]...
    name=$1 && shift
    step builder "hash, measure and sign the enclave of $name.py"
    "$CLOISTER" build -D "key_server=$KEY_SERVER" "$@" "$name.manifest.template"
}

release_key_to() { # NAME...
    step platform 'export the root of the SIMULATED processor'
    "$CLOISTER" platform export platform.json
    step owner 'serve the key to these enclaves only'
    # shellcheck disable=SC2046  # one option a name
    background serve.log '^listening' "$CLOISTER" serve --key wrap-key \
        $(printf -- '--enclave %s ' "$@") --listen "$KEY_SERVER" \
        --cert certs/server.crt --cert-key certs/server.key --trust-simulated platform.json
}

# Start a command that stops with this script; wait until PATTERN is in its LOG.
running=
stop() {
    kill $running 2>/dev/null || :
    wait
}
background() { # LOG PATTERN COMMAND...
    log=$1 && pattern=$2 && shift 2
    "$@" >"$log" 2>&1 &
    running="$running $!"
    trap stop EXIT
    until grep -qs "$pattern" "$log"; do
        kill -0 $! 2>/dev/null || { cat "$log" >&2 && exit 1; }
        sleep 0.1
    done
}
