"""Adapters that let other libraries use a tunnel. Each module needs its library and is imported only on request."""
