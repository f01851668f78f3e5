"""Sentences about the match between a person and a contact."""

from collections.abc import Sequence

from cliniko_pipeline.cli.explain.texts import candidates, contact_absence, list_of, number_of
from cliniko_pipeline.postgres.reads.explanations.match import Candidate, Mapping, Match, Pass
from cliniko_pipeline.postgres.reads.explanations.person import Person

_METHODS = {"cliniko_patient_id": "cliniko_patient_id", "email": "e-mail", "name": "name"}


def match_lines(match: Match, person: Person) -> list[str]:
    """Return sentences about the stored mapping, the mapping of the next sync if it differs, and the passes."""
    if match.now is None:
        return ["The person has no record, so it has no contact."]
    stored = "not mapped yet" if match.stored is None else _mapping(match.stored)
    lines = [f"{stored[0].upper()}{stored[1:]}."]
    if match.contact_absence is not None:
        lines.append(f"That contact {contact_absence(match)} later.")
    if match.stored != match.now:
        lines.append(f"The next mapping will be: {_mapping(match.now)}. These are its passes:")
    lines += [f"By {_METHODS[tried.method]}: {pass_text(tried, person)}." for tried in match.passes]
    return lines


def _mapping(mapping: Mapping) -> str:
    method = _METHODS.get(mapping.method or "")
    return {
        "matched": f"matched to contact {mapping.contact_id} by {method}",
        "ambiguous": f"ambiguous by {method}, among {candidates(mapping)}",
        "unmatched": "unmatched",
    }[mapping.status]


def pass_text(tried: Pass, person: Person) -> str:
    """Return the outcome of a matching pass, phrased as the end of a sentence."""
    if tried.method == "cliniko_patient_id":
        return _pass_by_id(tried, person)
    key = _METHODS[tried.method]
    if tried.reason == "only_pair":
        (contact,) = (candidate for candidate in tried.candidates if candidate.state == "free")
        return f"only contact {contact.id} with the same {key} can still match, and no other patient has this {key}"
    simple = {
        "not_current": f"skipped, because the patient is {person.state}",
        "no_key": f"the patient has no {key}",
        "no_contact": f"no contact has the same {key}",
        "none_free": f"{_not_free(tried.candidates)}, so no contact with the same {key} is left",
    }
    return simple.get(tried.reason) or _pass_among_several(tried, key)


def _pass_by_id(tried: Pass, person: Person) -> str:
    if tried.reason == "no_contact":
        others = len(person.patient_ids) - 1
        merged = f", or the id of one of the {number_of(others, 'patient')} merged into it" if others else ""
        return f"no contact has the patient id {person.id}{merged}"
    having = [f"contact {candidate.id} has the patient id {candidate.patient_id}" for candidate in tried.candidates]
    carried = list_of(having)
    if tried.reason == "only_pair":
        return carried
    equal = [candidate for candidate in tried.candidates if candidate.equal_name]
    if len(equal) == 1:
        return f"{carried}; only {equal[0].id} also has the name of patient {person.id}"
    return (
        f"{carried}; {len(equal) or 'none'} of them also {'have' if equal else 'has'} the name of patient {person.id}"
    )


def _pass_among_several(tried: Pass, key: str) -> str:
    free = [str(candidate.id) for candidate in tried.candidates if candidate.state == "free"]
    others = tried.other_patient_ids
    shared = (
        f"it shares its {key} with patient{'s' if len(others) > 1 else ''} {list_of(others)}"
        if others
        else f"no other patient has its {key}"
    )
    contacts = f"contact{'s' if len(free) > 1 else ''} with the same {key} that can still match: {list_of(free)}"
    if tried.reason == "equal_names":
        return f"{shared}; {contacts}; only this patient and its contact have equal names"
    taken = [candidate for candidate in tried.candidates if candidate.state != "free"]
    not_free = f"; {_not_free(taken)}" if taken else ""
    reason = "no pair with equal names is unique" if tried.method == "email" else "nothing distinguishes them"
    return f"{shared}; {contacts}{not_free}; {reason}"


def _not_free(contacts: Sequence[Candidate]) -> str:
    return list_of(
        [
            f"contact {contact.id} {'has the id of' if contact.state == 'names_another' else 'matches'} patient"
            f" {contact.patient_id}"
            for contact in contacts
        ]
    )
