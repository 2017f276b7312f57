"""Meta-test protocols behind the `Protocol` contract."""
