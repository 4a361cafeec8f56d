# The whole confidential workflow of one example, all roles in one directory. Called by `make demo`
# in the example's directory with the names of its programs: sh ../demo.sh NAME...
. ../roles.sh

step owner 'run natively, for comparison'
rm -rf native decrypted
cp -r plaintext native
for name in "$@"; do (cd native && "$PYTHON" "../$name.py"); done

encrypt_inputs
for name in "$@"; do build "$name"; done
release_key_to "$@"

step platform 'run in the SIMULATED enclave'
for name in "$@"; do "$CLOISTER" run "$name"; done

step owner 'decrypt the results, compare them with those of the native run'
"$CLOISTER" decrypt -k wrap-key encrypted decrypted
diff -r native decrypted
echo 'every file is the same, byte for byte'
