# make demo [INPUT=path], make test, make test-5.10, make bench, make lint, make audit, make screenshots, make model, make
# detector. The first call sets up .venv; later ones skip that.
PYTHON ?= python3
# Some package indexes resolve a bare "torch" to gigabytes of CUDA libraries; any build from 2.2 on will do.
TORCH ?= torch==2.13.0
INPUT ?=
READY := .venv/.ready
OLDEST := build/slicer-5.10

# Tests start many processes, which need not compile the modules again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-5.10 bench bench-panel lint audit screenshots model detector clean

demo: $(READY)
	Testing/headless-slicer Testing/demo.py $(if $(INPUT),"$(INPUT)")

test: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist worksteal Testing/Python/core Testing/Python/scene
	.venv/bin/python -m pytest -n 2 --dist loadfile Testing/Python/panel Testing/Python/reliability

# With what Slicer 5.10 bundles; its pydicom comes without the examples of later ones.
test-5.10: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 PYDICOM_EXAMPLES="$(CURDIR)/$(OLDEST)/later/pydicom/data/test_files" \
	  $(OLDEST)/bin/python -m pytest -n auto --dist worksteal Testing/Python/core Testing/Python/scene

bench: $(READY)
	.venv/bin/speckle2self benchmark speed build/bench --history Documentation/speed_history.csv
	.venv/bin/speckle2self benchmark quality build/bench --quick

bench-panel: $(READY)
	.venv/bin/python -m pip install --quiet --editable ".[bench]"
	Testing/headless-slicer --main-window Testing/panel_benchmark.py

lint: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/codespell
	.venv/bin/python -m pytest Testing/Python/core/test_words.py

# Known vulnerabilities of the packages in .venv, from PyPI; fails if PyPI has no record of one.
audit: $(READY)
	.venv/bin/python -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	.venv/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > build/audit/installed.txt
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement build/audit/installed.txt

screenshots: $(READY)
	Testing/headless-slicer --main-window Testing/screenshots.py

# The training of the bundled model, from the one before: about three and a half hours on two cores.
START := 2b7dfa2

model: $(READY)
	mkdir -p build/model
	git show $(START):Speckle2Self/Resources/Models/default.safetensors > build/model/start.safetensors
	.venv/bin/python Testing/make_model.py build/model/start.safetensors build/model/default.safetensors

# A network that finds graphics, like the bundled one, in the same way: an hour on one core.
detector: $(READY)
	mkdir -p build/model
	.venv/bin/python -m pip install --quiet --editable ".[bench]"
	.venv/bin/python -m Speckle2SelfBench.train_detector build/model/graphics.npz build/model/graphics.safetensors

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one with make PYTHON=/path/to/python3."; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	.venv/bin/python -m pip install --quiet "$(TORCH)"
	.venv/bin/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(OLDEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet "$(TORCH)"
	$(OLDEST)/bin/python -m pip install --quiet --editable ".[test]" numpy==2.0.2 scipy==1.13.1 pydicom==2.4.4
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --target $(OLDEST)/later pydicom==3.0.2
	@touch $@

clean:
	rm -rf .venv build
