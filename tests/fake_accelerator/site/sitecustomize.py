"""With FAKE_ACCELERATOR=1, and this folder and `tests` on PYTHONPATH: every Python process that imports torch has the
device, child processes of tests included."""

import os
import sys

if os.environ.get("FAKE_ACCELERATOR"):
    import importlib.abc
    import importlib.util

    class _AfterTorch(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name != "torch":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec("torch")
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                import fake_accelerator

                fake_accelerator.install()
                fake_accelerator.present(int(os.environ.get("FAKE_ACCELERATOR_MEMORY", "0"))).__enter__()

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, _AfterTorch())
