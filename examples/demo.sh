# The whole confidential workflow of one example, all roles in one directory. Called by `make demo`
# in the example's directory with the names of its programs: sh ../demo.sh APP...
set -eu

step() { printf '==> %-9s %s\n' "$1" "$2"; }
each() { for app in $apps; do "$@" "$app"; done; }
native() { (cd native && PYTHONDONTWRITEBYTECODE=1 "$PYTHON" "../$1.py"); }
build() { "$CLOISTER" build -D "key_server=$KEY_SERVER" "$1.manifest.template"; }
apps=$*
rm -rf native encrypted decrypted

step owner 'run natively, for comparison'
cp -r plaintext native
each native

step owner 'make a wrap key and certificates, encrypt the inputs'
[ -e wrap-key ] || "$CLOISTER" key new wrap-key
[ -e certs ] || "$CLOISTER" certs new certs
"$CLOISTER" encrypt -k wrap-key plaintext encrypted

step builder 'hash, measure and sign'
each build

step platform 'export the root of the SIMULATED processor'
"$CLOISTER" platform export platform.json

step owner 'release the key to these enclaves only'
: >serve.log
"$CLOISTER" serve --key wrap-key $(printf -- '--enclave %s ' "$@") --listen "$KEY_SERVER" \
    --cert certs/server.crt --cert-key certs/server.key --trust-simulated platform.json \
    >>serve.log 2>&1 &
server=$!
trap 'kill $server 2>/dev/null' EXIT
until grep -q '^listening' serve.log; do
    kill -0 $server 2>/dev/null || { cat serve.log >&2; exit 1; }
    sleep 0.1
done

step platform 'run in the SIMULATED enclave'
each "$CLOISTER" run

step owner 'decrypt the results, compare them with those of the native run'
"$CLOISTER" decrypt -k wrap-key encrypted decrypted
diff -r native decrypted
echo 'every file is the same, byte for byte'
