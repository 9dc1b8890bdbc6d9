"""MONAI's parser of configurations, while another thread imports."""

import sys
import threading
import types

import pytest
from monai.bundle import ConfigParser

from monai_diffae.bundle.parser import ModuleLocator, Parser


@pytest.fixture
def another_thread_imports():
    """Another thread adds modules and removes them, as often as it can."""
    ended, before = threading.Event(), sys.getswitchinterval()

    def add_and_remove():
        while not ended.is_set():
            for number in range(50):
                sys.modules[f"imported_{number}"] = types.ModuleType(f"imported_{number}")
            for number in range(50):
                del sys.modules[f"imported_{number}"]

    thread = threading.Thread(target=add_and_remove)
    sys.setswitchinterval(1e-6)
    thread.start()
    yield
    ended.set()
    thread.join()
    sys.setswitchinterval(before)


def test_components_are_found_meanwhile(another_thread_imports):
    locators = [ModuleLocator() for _ in range(50)]
    assert len({tuple(locator._find_module_names()) for locator in locators}) == 1


def test_a_short_name_is_found_as_monai_finds_it():
    config = {"act": {"_target_": "Identity"}}
    assert type(Parser(config).get_parsed_content("act")).__module__.startswith("monai.transforms")
    assert type(Parser(config).get_parsed_content("act")) is type(ConfigParser(config).get_parsed_content("act"))


def test_a_parser_searches_with_it():
    assert isinstance(Parser({"size": 8}).locator, ModuleLocator)
