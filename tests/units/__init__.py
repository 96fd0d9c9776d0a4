"""The small units of each room that a run of the whole program can't reach well.

Real shells, an encoder of our own and tables of cases judge them; time and chance are brought
along, and nothing goes out to a network. Each module is named after its room of thopters.py.
"""
