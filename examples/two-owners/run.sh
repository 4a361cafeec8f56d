#!/usr/bin/env bash
# Two owners, one enclave, from the first key to the result; README.md explains each step.
#
#   ./run.sh [DIRECTORY]     the four roles get directories there (default: work, made anew)
#
# Variables: MODEL_PORT, DATA_PORT  where the owners' key servers listen (4434, 4435)
set -euo pipefail
export CLOISTER_PLATFORM=simulated # also where there is better: the owners trust this one below

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:-$here/work}
model_port=${MODEL_PORT:-4434}
data_port=${DATA_PORT:-4435}
if [ -d "$here/../../.venv/bin" ]; then PATH=$(cd "$here/../../.venv/bin" && pwd):$PATH; fi

if [ -e "$work" ]; then
    echo "error: $work exists; it is never overwritten" >&2
    echo "hint: rm -r $work, or name another directory: $0 DIRECTORY" >&2
    exit 2
fi
mkdir -p "$work"
work=$(cd "$work" && pwd)
mkdir -m 700 "$work"/{model-owner,data-owner,builder,platform}
servers=()
trap 'for server in "${servers[@]}"; do kill "$server" 2>/dev/null || true; done; wait' EXIT

role() { printf '%-12s %s\n' "$1" "$2"; }

# Wait until the server whose output is in FILE listens.
listening() {
    for _ in $(seq 300); do
        if grep -q '^listening' "$1"; then return; fi
        sleep 0.1
    done
    cat "$1" >&2
    exit 1
}

role "model owner" "trains and encrypts the model; makes certificates"
cd "$work/model-owner"
python3 "$here/train.py" plaintext/model.pt
cloister key new wrap-key >/dev/null
cloister encrypt -k wrap-key plaintext model >/dev/null
cloister certs new certs >/dev/null

role "data owner" "encrypts the patients; makes certificates"
cd "$work/data-owner"
cp -r "$here/plaintext/data" plaintext
cloister key new wrap-key >/dev/null
cloister encrypt -k wrap-key plaintext data >/dev/null
cloister certs new certs >/dev/null

role "builder" "measures and signs the program and both owners' certificates"
cd "$work/builder"
cp "$here"/{score.py,network.py,score.manifest.template} .
mkdir certs
cp "$work/model-owner/certs/ca.crt" certs/model-owner.crt
cp "$work/data-owner/certs/ca.crt" certs/data-owner.crt
cloister build -D "model_server=localhost:$model_port" -D "data_server=localhost:$data_port" \
    score.manifest.template >/dev/null

role "platform" "gets what was signed and what is encrypted, and nothing else"
cp -r "$work/builder"/{score.py,network.py,certs,score.manifest.sgx,score.index,score.sig} \
    "$work/model-owner/model" "$work/data-owner/data" "$work/platform"
cd "$work/platform"
cloister platform export platform.json 2>/dev/null

role "model owner" "serves its key from a store, by a policy file: this measurement, this SIMULATED root"
cd "$work/model-owner"
measurement=$(cloister sigstruct show --json "$work/builder/score.sig" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["mr_enclave"])')
root=$(cloister platform show --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["root_sha256"])')
printf 'version = 1\nmrenclave = "%s"\nroots = ["%s"]\n' "$measurement" "$root" >policy.toml
cloister secret new-key store.key >/dev/null
cloister secret put model wrap-key --policy policy.toml \
    --store keys.db --store-key file:store.key >/dev/null
cloister serve --store keys.db --store-key file:store.key \
    --cert certs/server.crt --cert-key certs/server.key \
    --listen "localhost:$model_port" --trust-simulated "$work/platform/platform.json" \
    >serve.log 2>&1 &
servers+=($!)

role "data owner" "serves its key to the enclave that it rebuilt and looked at"
cd "$work/data-owner"
cp "$work/builder/score.sig" .
cloister serve --key data=wrap-key --enclave score --audit audit.db \
    --cert certs/server.crt --cert-key certs/server.key \
    --listen "localhost:$data_port" --trust-simulated "$work/platform/platform.json" \
    >serve.log 2>&1 &
servers+=($!)
listening "$work/model-owner/serve.log"
listening "$work/data-owner/serve.log"

role "platform" "runs the enclave; both owners' servers judge it"
cd "$work/platform"
cloister run score

role "data owner" "fetches the result and decrypts it"
cd "$work/data-owner"
cp "$work/platform/data/risk.csv" data/
cloister decrypt -k wrap-key data/risk.csv -
