# The service natively and in its enclave, and a client of each; called by `make demo`.
. ../roles.sh
LISTEN=${LISTEN:-8443}
photograph=../pytorch/plaintext/input.jpg
mkdir -p native

step owner 'ask the service natively, over plain TLS, for comparison'
[ -e certs ] || "$CLOISTER" certs new certs
(
    cd plaintext
    background ../native/service.log 'running on' "$PYTHON" -m uvicorn service:app --app-dir .. \
        --port "$LISTEN" --ssl-certfile ../certs/server.crt --ssl-keyfile ../certs/server.key
    "$PYTHON" ../client.py --ca ../certs/ca.crt "https://localhost:$LISTEN/classify" \
        "../$photograph" >../native/answer.txt
)

encrypt_inputs
build service -D "listen=$LISTEN"
release_key_to service

step platform 'start the service in the SIMULATED enclave'
background service.log 'running on' "$CLOISTER" run service

step client 'verify the enclave, then send the photograph'
"$PYTHON" client.py "https://localhost:$LISTEN/classify" $photograph | tee answer.txt
cmp native/answer.txt answer.txt
echo 'the same answer as natively'
