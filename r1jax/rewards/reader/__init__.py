"""The reader of answers: where a completion gives its answer, of which kind it is, and whether it equals a gold answer.

    characters    normal forms of digits, signs and spaces of all scripts
    numerals      exact numbers
    units         a closed list of units and of counted things
    spelling      wrappers around answers, spelling of texts, normal form of LaTeX
    places        text after the reasoning; answer tags, boxes, requested lines
    choices       letters of multiple choice
    kinds         number, choice, text, tuple, set, interval, equation, expression
    comparing     equal or not, by which rule, and what only algebra can tell
    golds         golds read as a whole or not at all, and a check of a data set's golds before a run

Rewards and evaluation read answers with these files only. All texts come from a model and are untrusted: every function
is linear in the length of its text.
"""
