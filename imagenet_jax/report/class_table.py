"""The table of classes, which the reader sorts and searches."""

import numpy as np

from imagenet_jax.markup import escape
from imagenet_jax.report.places import note
from imagenet_jax.report.records import Predicted

_MOST_ROWS = 2000  # classes in the table; ImageNet's 1,000 fit, 21,000 would stop a browser
_FILTERED = 20  # classes from which on a field reduces the table


def class_table(key: str, predicted: Predicted) -> str:
    """Sorted by a click; the lowest F1 first."""
    found = predicted.by_class
    order = np.argsort(found.f1, kind="stable")
    shown = order[:_MOST_ROWS]
    rows = []
    for label in shown.tolist():
        wrong = found.confusion[label].copy()
        wrong[label] = 0
        other = int(wrong.argmax())
        taken = f"{found.class_names[other]} ({wrong[other]:,})" if wrong[other] else ""
        shares = "".join(
            f'<td class="number" data-value="{value:.6f}">{value:.1%}</td>'
            for value in (found.precision[label], found.recall[label], found.f1[label])
        )
        rows.append(
            f'<tr><th scope="row">{escape(found.class_names[label])}</th>{shares}'
            f'<td class="number" data-value="{found.support[label]}">{found.support[label]:,}</td>'
            f"<td>{escape(taken)}</td></tr>"
        )
    heads = "".join(
        f'<th scope="col"{right}{sort}><button type="button">{name}</button></th>'
        for name, right, sort in (
            ("class", "", ""),
            ("precision", ' class="number"', ""),
            ("recall", ' class="number"', ""),
            ("F1", ' class="number"', ' aria-sort="ascending"'),
            ("images", ' class="number"', ""),
            ("most often taken for", "", ""),
        )
    )
    limit = ""
    if len(order) > len(shown):
        limit = note(
            f"The {len(shown):,} classes of lowest F1 of {len(order):,} are shown; "
            "imagenet_jax.eval --by_class writes all."
        )
    search = (
        f'<input type="search" data-filter="{key}" placeholder="show classes with ..." '
        'aria-label="show classes with">'
        if len(shown) > _FILTERED
        else ""
    )
    return (
        f'{limit}{search}<div class="scroll tall"><table class="sortable" id="{key}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
