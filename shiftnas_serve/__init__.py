"""How a bundle is served: budgets, subnets as ONNX sessions, workers, HTTP. Never imports torch.

Read in this order: ``classify`` (what one request goes through), ``planner`` (budget -> subnet),
``worker`` (what runs it), ``host`` (which processes there are and how they stop).
"""
