"""The swap engine: plan, strategies, race, forecast, stages."""
