"""The reader of answers: where a completion gives its answer, what kind of thing that is, and whether it equals a gold.

    characters    one spelling for digits, signs and spaces of all scripts
    numerals      numbers, exactly
    units         a closed list of units and of counted things
    spelling      what wraps an answer, texts letter by letter, LaTeX in one form
    places        the thought cut off; answer tags, boxes, asked-for lines
    choices       letters of multiple choice
    kinds         number, choice, text, tuple, set, interval, equation, expression
    comparing     same or not, by which rule, and what only algebra can tell
    golds         golds read whole or not at all, and a data set's golds checked before a run

Rewards and evaluation read answers by these files and by nothing else. All texts were written by a model, hence
hostile: every function is linear in the length of its text.
"""
