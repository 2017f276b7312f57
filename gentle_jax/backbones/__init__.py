"""RL learners behind the `Backbone` contract."""
