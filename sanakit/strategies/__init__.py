"""Strategies: how the swapped layers start, and which parameter groups move at which rate; one file adds one."""

from sanakit.strategies.base import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "Strategy"]
