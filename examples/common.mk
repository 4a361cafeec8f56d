# What the Makefiles of the examples share. Each names its programs and includes this:
#
#   APPS := train predict     train.py with train.manifest.template, then predict.py with its own
#   include ../common.mk
#
#   make            render the manifests for direct mode (no enclave, data in plaintext/)
#   make SGX=1      hash, measure and sign the enclaves (data in encrypted/)
#   make data       only make the inputs in plaintext/ (prepare.py)
#   make demo       everything: natively, then in the SIMULATED enclave; the results must agree
#   make clean      remove what was built and computed; make distclean also keys and inputs
#
# Variables:
#   KEY_SERVER  HOST:PORT of the owner's `cloister serve`, measured into the enclave
#   CLOISTER    the cloister command; PYTHON the Python that has the packages
#               (both default to the virtual environment at the top of the repository, if it is there)

SGX ?= 0
KEY_SERVER ?= localhost:4433
BIN := $(abspath $(wildcard ../../.venv/bin))
CLOISTER ?= $(if $(BIN),$(BIN)/cloister,cloister)
PYTHON ?= $(if $(BIN),$(BIN)/python,python3)
DEMO ?= ../demo.sh

BUILT := $(foreach app,$(APPS),$(addprefix $(app).,manifest manifest.sgx index sig))

.DELETE_ON_ERROR:
.PHONY: all direct enclave data demo clean distclean

all: $(if $(filter 1,$(SGX)),enclave,direct)

# Always built anew: `cloister build` remembers the hashes of files that did not change, and it
# knows better than make which of the thousands of Python's files did.
direct: data
	@$(foreach app,$(APPS),$(CLOISTER) build --mode direct -D data=plaintext $(app).manifest.template &&) true

enclave:
	@$(foreach app,$(APPS),$(CLOISTER) build -D key_server=$(KEY_SERVER) $(app).manifest.template &&) true

data: plaintext

plaintext: prepare.py
	@$(PYTHON) prepare.py
	@touch plaintext

demo: data
	@CLOISTER="$(CLOISTER)" PYTHON="$(PYTHON)" KEY_SERVER="$(KEY_SERVER)" sh $(DEMO) $(APPS)

clean:
	@rm -rf $(BUILT) native decrypted encrypted __pycache__ platform.json *.log answer.txt

distclean: clean
	@rm -rf plaintext certs wrap-key
