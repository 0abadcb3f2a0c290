# The commands of this book. Each makes its environment (.venv) by itself; see README.md for the same without make.
PYTHON ?= python3
FOUND = command -v "$(PYTHON)" >/dev/null || { \
	echo "No $(PYTHON) here. Name a Python 3.10 to 3.13: make $@ PYTHON=python3.12" >&2; exit 2; }; \
	"$(PYTHON)" -E -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 10) <= v <= (3, 13) and \
	"Python too %s: found %d.%d (%s), needs 3.10 to 3.13. Name one: make $@ PYTHON=python3.12" \
	% ((v < (3, 10) and "old" or "new",) + v + (sys.executable,)))' || exit 2
ENV = @$(FOUND); "$(PYTHON)" -E tools/env.py --for $@

.DEFAULT_GOAL := help
.PHONY: help book test test-all pages pdf lint lab results clean adopt links chapter course

help:  ## these lines
	@echo "Vision Transformers in PyTorch"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'
	@echo
	@echo "Another Python: make test PYTHON=python3.13 (3.10 to 3.13). Size of the runs: VITBOOK_SCALE=smoke|cpu|gpu"

book:  ## execute the notebooks and render the book to _build/html (PUBLISH=1: only with the real data)
	$(ENV) tools/book.py

test:  ## ruff, the package's tests, and every notebook at the smallest scale
	$(ENV) tools/test.py

test-all:  ## the same, and what takes long: small books built, environments made, processes killed
	$(ENV) tools/test.py --all

pages:  ## open the built pages in a browser: weight, other hosts, accessibility, phone, keyboard, search
	$(ENV) tools/pages.py

pdf:  ## print the built book into one PDF, with bookmarks, and offer it on the home page
	$(ENV) tools/pdf.py

lint:  ## ruff alone: seconds
	$(ENV) tools/test.py --lint

lab:  ## open the notebooks in JupyterLab
	$(ENV) -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

results:  ## which of results/ were made by other code than the study that stands here
	$(ENV) -m studies --status

links:  ## ask other sites whether the pages that the book links to are still there
	$(ENV) tools/links.py

clean:  ## remove what was built (ALL=1: the environments too)
	@$(FOUND); "$(PYTHON)" -E tools/clean.py

chapter:  ## begin a chapter: make chapter NAME=18_registers TITLE="Registers"
	$(ENV) tools/chapter.py

course:  ## make the assignments: students' notebooks, the teachers', the guide (_build/course)
	$(ENV) tools/course.py

adopt:  ## make the book yours: make adopt REPO=https://github.com/me/my-book (BRANCH=trunk)
	@$(FOUND); "$(PYTHON)" -E tools/adopt.py
