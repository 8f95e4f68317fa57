use super::*;

fn held(waiter: u32) -> Held<u32> {
    Held { waiter, since: Duration::ZERO, avoid: Avoid::default() }
}

fn drain(queue: &mut Queue<u32>) -> Vec<u32> {
    std::iter::from_fn(|| queue.pop()).map(|held| held.waiter).collect()
}

#[test]
fn first_come_first_served_whoever_leaves() {
    let mut queue = Queue::new();
    let tickets: Vec<Ticket> = (0..6).map(|n| queue.push(held(n))).collect();
    for leaves in [0, 3, 5] {
        assert_eq!(queue.cancel(tickets[leaves]).map(|held| held.waiter as usize), Some(leaves));
    }
    assert_eq!(queue.first().map(|held| held.waiter), Some(1));
    assert_eq!(queue.len(), 3);
    assert_eq!(drain(&mut queue), [1, 2, 4]);
    assert!(queue.is_empty() && queue.cancel(tickets[1]).is_none());
}

#[test]
fn one_that_stays_keeps_no_memory_for_the_thousands_that_left() {
    let mut queue = Queue::new();
    queue.push(held(0));
    for n in 1..10_000 {
        let ticket = queue.push(held(n));
        queue.cancel(ticket);
        assert!(queue.places.len() <= GAPS + 2, "{}", queue.places.len());
    }
    assert_eq!(drain(&mut queue), [0]);
}

#[test]
fn an_empty_queue_gives_its_memory_back() {
    let mut queue = Queue::new();
    for n in 0..10_000 {
        queue.push(held(n));
    }
    assert_eq!(drain(&mut queue).len(), 10_000);
    assert!(queue.places.capacity() <= KEPT);
}

#[test]
fn a_held_request_takes_little_memory() {
    assert!(size_of::<(Ticket, Option<Held<usize>>)>() <= 64);
}
