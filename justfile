# The commands of this project. `./dev <recipe>` prepares everything and comes here; CI runs the same.

set shell := ["bash", "-euo", "pipefail", "-c"]
set positional-arguments

export PATH := justfile_directory() / ".venv/bin" + ":" + env("PATH") + ":/usr/sbin:/sbin"

[private]
default:
    @"{{ just_executable() }}" --justfile "{{ justfile() }}" --list --unsorted

# Prepare the environment and nothing else
setup:
    @echo "ready: .venv holds $(.venv/bin/python --version) and the locked packages"

# Format, lint, types, layers and fast tests; a few minutes
[no-exit-message]
check *arguments: _static
    pytest --numprocesses 2 --dist loadfile -m "not guest and not slow" tests/test_tidy.py tests/test_docs.py tests/test_dev.py tests/unit tests/property "$@"

# Everything CI runs; arguments go to pytest (`--long` runs the same suites deeper)
[no-exit-message]
test *arguments: _static
    pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report= "$@"

[private]
[no-exit-message]
_static:
    ruff format --check --quiet .
    ruff check --quiet .
    mypy
    lint-imports --no-cache

# Format the code and mend what ruff can mend
fix:
    ruff check --fix --quiet . || true
    ruff format .
    ruff check .

# Measure beside restic, borg, Benji, nbdcopy and qemu-img; `./dev bench --help` tells more
[no-exit-message]
bench *arguments:
    python -m benchmarks "$@"

# Back up and restore a real guest from end to end, or a vCenter's VM (`--vsphere`)
[no-exit-message]
demo *arguments:
    python -m demo "$@"

# Run the hub on this tree, with its data in .cache/data
[no-exit-message]
dev *arguments:
    sendense serve --data-dir .cache/data --host 127.0.0.1 --port 8082 --no-auth "$@"

# Write a migration from the difference between tables and models: ./dev migration "add labels"
migration message:
    #!/usr/bin/env python
    import sys, tempfile
    from alembic import command
    from sendense.db import schema
    from sendense.db.catalog import Catalog
    number = len(list((schema.MIGRATIONS / "versions").glob("[0-9]*.py"))) + 1
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog(f"sqlite:///{folder}/catalog.sqlite")
        schema.migrate(catalog)
        with schema.configured(catalog) as config:
            command.revision(config, sys.argv[1], autogenerate=True, rev_id=f"{number:04}")
        catalog.close()

# Recompile the locks in requirements/; extra arguments (--upgrade) go to uv
lock *arguments:
    uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11 --output-file requirements/runtime.txt pyproject.toml "$@"
    uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11 --group dev --output-file requirements/dev.txt pyproject.toml "$@"
    uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11 --overrides requirements/benji-overrides.in --output-file requirements/benji.txt requirements/benji.in "$@"
