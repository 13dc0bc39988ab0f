# make demo    see it work: real C-STORE in, rules, a module, results in a folder and at a second DICOM node
# make test    install what the tests need, and run them all
# the others: make help

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check format docs bench soak clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.venv/.run: pyproject.toml uv.lock scripts/environment
	@scripts/environment run

.venv/.dev: pyproject.toml uv.lock scripts/environment
	@scripts/environment dev

demo: .venv/.run  ## Run everything once in a temporary home; KEEP=1 leaves it running.
	@.venv/bin/python demo/demo.py $(if $(KEEP),--keep)

test: .venv/.dev  ## Install what the tests need (system packages too) and run them all.
	@scripts/components
	@.venv/bin/python -m pytest -n 2 --dist worksteal

test-fast: .venv/.dev  ## Run the tests that need no server, in under a minute.
	@dir=$$(mktemp -d -p $$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)); \
	  .venv/bin/python -m pytest -n 2 --dist worksteal -m "not server and not slow and not soak" --basetemp=$$dir/t; \
	  code=$$?; rm -rf $$dir; exit $$code

check: .venv/.dev  ## Look at style, types, imports and documentation.
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache
	@.venv/bin/python scripts/reference.py --check

format: .venv/.dev  ## Lay the code out as `check` wants it.
	@.venv/bin/ruff check --fix --quiet || true
	@.venv/bin/ruff format --quiet

docs: .venv/.dev  ## Write the pages of docs/reference that come from the code.
	@.venv/bin/python scripts/reference.py

bench: .venv/.dev  ## Measure, each peer beside ours in the same run; a few minutes on a quiet machine.
	@scripts/components
	@.venv/bin/python -m bench

soak: .venv/.dev  ## Kill it again and again for an hour (MINUTES=60), and count what was lost.
	@scripts/components
	@TALARIA_SOAK_MINUTES=$(or $(MINUTES),60) .venv/bin/python -m pytest -m soak -s

clean:  ## Remove what was built.
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
